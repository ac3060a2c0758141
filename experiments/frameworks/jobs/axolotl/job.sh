export AXOLOTL_DO_NOT_TRACK=1 ACCELERATE_USE_CPU=1
set -- ${RESUME:+--resume-from-checkpoint "$RESUME"}
# page:
axolotl train train.yaml "$@"
# end of page
