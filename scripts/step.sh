#!/bin/bash
# Runs one step of a check. Prints when it began and how long it took, and notes this for a table.
#
#   scripts/step.sh NAME COMMAND [ARGUMENT...]   ends with the command's status
#   scripts/step.sh --table                      prints the table of the notes in $STEPS
#
# A step may consist of other steps, which the table lists indented below it. The outermost step
# prints the table at its end. If STEPS already names a file of notes, it does not: then the caller
# that set STEPS prints the table.
set -u

table() {
    echo
    echo "== time of each step"
    # A step is noted at its end. Sorted by their beginnings, a step precedes the steps in it.
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
# In nanoseconds, since several steps may begin in the same second.
begun=$(date +%s%N)
SECONDS=0
STEP_DEPTH=$((depth + 1)) "$@"
status=$?
echo "== $name: $SECONDS s"
printf '%s\t%s\t%s\t%s\t%s\n' "$begun" "$depth" "$SECONDS" "$status" "$name" >> "$STEPS"
if [ -n "$is_outermost" ]; then
    # A table of one step would add nothing to the lines above.
    [ "$(wc -l < "$STEPS")" -le 1 ] || table "$STEPS"
    rm -f "$STEPS"
fi
exit $status
