# page:
tune run full_finetune_single_device --config train.yaml
# end of page
