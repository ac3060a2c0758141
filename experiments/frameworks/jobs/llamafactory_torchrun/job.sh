export DISABLE_VERSION_CHECK=1 NPROC_PER_NODE=2
# page:
FORCE_TORCHRUN=1 adopt-hf run llamafactory-cli train train.yaml
# end of page
