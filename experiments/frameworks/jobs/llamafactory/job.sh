export DISABLE_VERSION_CHECK=1
set -- ${RESUME:+resume_from_checkpoint="$RESUME"}
# page:
adopt-hf run llamafactory-cli train train.yaml "$@"
# end of page
