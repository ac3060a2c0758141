export PYTHONPATH="$PWD:$PYTHONPATH"
set -- ${RESUME:+resume_from_checkpoint=true "checkpointer.checkpoint_files=[epoch_0/model-00001-of-00001.safetensors]"}
# page:
tune run full_finetune_single_device --config train.yaml "$@"
# end of page
