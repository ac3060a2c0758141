set -- --output_dir out ${RESUME:+--resume_from_checkpoint "$RESUME"}
# page:
adopt-hf run -m trl.scripts.sft --config sft.yaml --optim adopt --optim_args "beta2=0.99" "$@"
# end of page
