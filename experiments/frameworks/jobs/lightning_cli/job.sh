rm -f config.yaml  # LightningCLI has written it there
set -- ${RESUME:+--ckpt_path "$RESUME.ckpt"}
# page:
python train.py fit --config train.yaml "$@"
# end of page
