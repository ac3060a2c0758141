"""The tokenizer of the tiny model, with what torchtune's recipe asks of one."""

from torchtune.modules.transforms.tokenizers import HuggingFaceBaseTokenizer


class Words(HuggingFaceBaseTokenizer):
    pad_id = 0
    max_seq_len = None
