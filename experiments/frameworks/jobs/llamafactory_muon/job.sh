export DISABLE_VERSION_CHECK=1
# page:
adopt-hf run llamafactory-cli train train.yaml use_muon=true
# end of page
