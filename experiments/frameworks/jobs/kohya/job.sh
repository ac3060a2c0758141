# page:
accelerate launch train_network.py --optimizer_type adopt_hf.ADOPTW \
    --optimizer_args "betas=0.9,0.99" "weight_decay=0.1" ...
# end of page
