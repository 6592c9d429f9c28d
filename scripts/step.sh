#!/bin/bash
# Runs one step of a check, says when it began and how long it took, and notes that for a table.
#
#   scripts/step.sh NAME COMMAND [ARGUMENT...]   ends with the command's status
#   scripts/step.sh --table                      prints the table of what was noted in $STEPS
#
# A step may have steps of its own, which the table has below it, indented. The outermost step prints the
# table at its end, unless STEPS names a file of notes: then whoever set it does.
set -u

table() {
    echo
    echo "== time of each step"
    # Each is noted at its end; in the order in which they began, a step stands before its own.
    sort -n "$1" | while IFS=$'\t' read -r _ depth seconds status name; do
        [ "$status" = 0 ] && failed= || failed="  FAILED, status $status"
        printf '%6d s  %*s%s%s\n' "$seconds" $((depth * 2)) '' "$name" "$failed"
    done
}

if [ "$1" = --table ]; then
    table "$STEPS"
    exit
fi

is_outermost=
if [ -z "${STEPS:-}" ]; then
    is_outermost=1
    STEPS=$(mktemp) || exit
    export STEPS
fi
depth=${STEP_DEPTH:-0}
name=$1
shift
echo
echo "== $name ($(date +%T))"
# In nanoseconds, since several steps may begin in one second.
begun=$(date +%s%N)
SECONDS=0
STEP_DEPTH=$((depth + 1)) "$@"
status=$?
echo "== $name: $SECONDS s"
printf '%s\t%s\t%s\t%s\t%s\n' "$begun" "$depth" "$SECONDS" "$status" "$name" >> "$STEPS"
if [ -n "$is_outermost" ]; then
    # Of one step all has been said.
    [ "$(wc -l < "$STEPS")" -le 1 ] || table "$STEPS"
    rm -f "$STEPS"
fi
exit $status
