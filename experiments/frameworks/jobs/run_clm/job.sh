set -- --output_dir out ${RESUME:+--resume_from_checkpoint "$RESUME"}
set -- --max_steps 4 --save_steps 2 --per_device_train_batch_size 4 --use_cpu --report_to none "$@"
set -- --learning_rate 0.01 --weight_decay 0.1 "$@"
# page:
adopt-hf run run_clm.py --optim adopt --optim_args "beta2=0.99" "$@"
# end of page
