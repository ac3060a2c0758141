set -- ${RESUME:+--resume_from_checkpoint "$RESUME"}
# page:
adopt-hf run swift sft train.yaml --optim adopt --optim_args "beta2=0.99" "$@"
# end of page
