# page:
accelerate launch train_dreambooth_lora_flux.py --optimizer adopt ...  # trains AdamW
# end of page
