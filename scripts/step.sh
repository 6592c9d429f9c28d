#!/bin/bash
# Runs one step of a check. Prints when it began, how long it took, and the processor time of all
# its processes, and notes this for a table.
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
    sort -n "$1" | while IFS=$'\t' read -r _ depth seconds processor status name; do
        [ "$status" = 0 ] && failed= || failed="  FAILED, status $status"
        printf '%6d s  (processor %5d s)  %*s%s%s\n' "$seconds" "$processor" $((depth * 2)) '' "$name" "$failed"
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
seconds=$SECONDS
# Not in a subshell, whose children would be counted.
times > "$STEPS.$$"
processor=$(awk 'NR == 2 { gsub(/s/, ""); for (i = 1; i <= 2; i++) { split($i, t, "m"); sum += t[1] * 60 + t[2] } }
    END { printf "%d", sum }' "$STEPS.$$")
rm -f "$STEPS.$$"
echo "== $name: $seconds s, $processor s of processor time"
printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$begun" "$depth" "$seconds" "$processor" "$status" "$name" >> "$STEPS"
if [ -n "$is_outermost" ]; then
    # A table of one step would add nothing to the lines above.
    [ "$(wc -l < "$STEPS")" -le 1 ] || table "$STEPS"
    rm -f "$STEPS"
fi
exit $status
