"""The text of `optim_args`:

- every hyperparameter of ADOPT can be written, and what is written comes back, in every spelling (property);
- whatever else is written raises ValueError with one line that starts with "optim_args:" (property);
- the message names what is wrong and what is allowed (table).
"""

import inspect
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adopt_hf import ADOPT, backends
from adopt_hf.hyperparameters import LARGEST, LORAPLUS, OF_TRAINER, WARMUP_EXPONENT
from adopt_hf.integrations.transformers.optim_args import KEYS, parse

GOOD: list[tuple[str | None, dict[str, Any]]] = [
    (None, {}),
    ("", {}),
    ("  ", {}),
    ("None", {}),
    (" null ", {}),
    ("beta2=0.999", {"beta2": 0.999}),
    ("beta2=0.999,", {"beta2": 0.999}),
    (" beta2 = 0.999 , eps = 1e-8 , ", {"beta2": 0.999, "eps": 1e-8}),
    ("betas=(0.8,0.95)", {"beta1": 0.8, "beta2": 0.95}),
    ("betas=[0.8, 0.95], lr=1e-4", {"beta1": 0.8, "beta2": 0.95, "lr": 1e-4}),
    ("lr=1e-4,betas=( 0.8 , 0.95 )", {"beta1": 0.8, "beta2": 0.95, "lr": 1e-4}),
    ("lr=0", {"lr": 0.0}),
    ("beta1=0", {"beta1": 0.0}),
    ("weight_decay=1", {"weight_decay": 1.0}),
    ("clip_exp=none", {"clip_exp": None}),
    ("clip_exp=None", {"clip_exp": None}),
    ("clip_exp=null", {"clip_exp": None}),
    ("clip_exp=0.5", {"clip_exp": 0.5}),
    ("decouple=False", {"decouple": False}),
    ("decouple=false", {"decouple": False}),
    ("decouple=0", {"decouple": False}),
    ("decouple=True, maximize=no", {"decouple": True, "maximize": False}),
    ("beta2_warmup=on", {"beta2_warmup": WARMUP_EXPONENT}),
    ("beta2_warmup=0.5", {"beta2_warmup": 0.5}),
    ("beta2_warmup=1", {"beta2_warmup": 1.0}),
    ("beta2_warmup=0", {"beta2_warmup": False}),
    ("backend=reference", {"backend": "reference"}),
    ("capturable=yes", {"capturable": True}),
    ("state_bits=8, block_size=128", {"state_bits": 8, "block_size": 128}),
    ("state_bits=16.0, bf16_stochastic_round=yes", {"state_bits": 16, "bf16_stochastic_round": True}),
    ("seed=9007199254740993", {"seed": 9007199254740993}),
    ("loraplus_lr_ratio=16", {"loraplus_lr_ratio": 16.0}),
    ("loraplus_lr_ratio=1, loraplus_lr_embedding=0", {"loraplus_lr_ratio": 1.0, "loraplus_lr_embedding": 0.0}),
]

BAD = [  # text, what the message must contain
    ("beta3=0.9", ["'beta3'", "did you mean 'beta", "allowed keys: lr, beta1, beta2"]),
    ("learning_rate=1", ["'learning_rate'", "allowed keys"]),
    ("Beta2=0.9", ["'Beta2'", "did you mean 'beta2'"]),
    ("foreach=true", ["'foreach'", "allowed keys", "backend"]),
    ("beta2", ["'beta2'", "key=value", "allowed keys"]),
    ("beta2=", ["'beta2='", "key=value"]),
    ("=0.9", ["'=0.9'", "key=value"]),
    (",", ["key=value"]),
    ("beta2=0.9,,eps=1", ["''", "key=value"]),
    ("beta2=0.9;eps=1e-8", ["beta2", "0.9;eps=1e-8", "[0, 1)"]),
    ("beta2=high", ["beta2", "'high'", "[0, 1)"]),
    ("beta2=1", ["beta2", "1.0", "[0, 1)"]),
    ("beta1=-0.1", ["beta1", "-0.1", "[0, 1)"]),
    ("beta1=nan", ["beta1", "nan", "[0, 1)"]),
    ("beta1=true", ["beta1", "'true'", "[0, 1)"]),
    ("eps=-1", ["eps", "-1", ">= 0"]),
    ("eps=inf", ["eps", "inf", "finite"]),
    ("eps=none", ["eps", "'none'"]),
    ("lr=-1", ["lr", "-1", ">= 0"]),
    ("lr=1e999", ["lr", "inf", "finite"]),
    ("clip_exp=-0.25", ["clip_exp", "-0.25", "None"]),
    ("clip_exp=sqrt", ["clip_exp", "'sqrt'", "None"]),
    ("decouple=maybe", ["decouple", "'maybe'", "True or False"]),
    ("decouple=2", ["decouple", "'2'", "True or False"]),
    ("decouple=none", ["decouple", "'none'", "True or False"]),
    ("backend=triton", ["backend", "'triton'", *map(repr, backends.NAMES)]),
    ("state_bits=5", ["state_bits", "got 5", "one of 8, 16, 32"]),
    ("state_bits=8.5", ["state_bits", "8.5", "one of 8, 16, 32"]),
    ("state_bits=eight", ["state_bits", "'eight'", "one of 8, 16, 32"]),
    ("block_size=100", ["block_size", "100", "one of 64, 128, 256"]),
    ("bf16_stochastic_round=2", ["bf16_stochastic_round", "'2'", "True or False"]),
    ("seed=-1", ["seed", "-1", "a whole number"]),
    ("seed=0.5", ["seed", "0.5", "a whole number"]),
    ("loraplus_lr_ratio=0.5", ["loraplus_lr_ratio", "0.5", "a finite number >= 1"]),
    ("loraplus_lr_ratio=inf", ["loraplus_lr_ratio", "inf", "a finite number >= 1"]),
    ("loraplus_lr_ratio=nan", ["loraplus_lr_ratio", "nan", "a finite number >= 1"]),
    ("loraplus_lr_ratio=none", ["loraplus_lr_ratio", "'none'", "a finite number >= 1"]),
    ("loraplus_lr_embedding=-1e-6", ["loraplus_lr_embedding", "-1e-06", "a finite number >= 0"]),
    ("loraplus_ratio=16", ["'loraplus_ratio'", "did you mean 'loraplus_lr_ratio'", "loraplus_lr_embedding"]),
    ("beta2=0.9,beta2=0.9", ["'beta2'", "twice"]),
    ("betas=(0.9,0.99),beta1=0.9", ["'beta1'", "twice"]),
    ("betas=0.9,0.99", ["betas=(beta1, beta2)", "'0.9'"]),
    ("betas=(0.9)", ["betas=(beta1, beta2)", "'(0.9)'"]),
    ("betas=(0.9,0.99,0.999)", ["betas=(beta1, beta2)"]),
    ("betas=(0.9,0.99", ["betas=(beta1, beta2)"]),
    ("betas=(,)", ["beta1", "''", "[0, 1)"]),
    ("betas=(0.9,1.0)", ["beta2", "1.0", "[0, 1)"]),
    ("beta2=0.9\nX", ["beta2", "[0, 1)"]),
]

numbers = st.floats(0, LARGEST, exclude_max=True)
betas = st.floats(0, 1, exclude_max=True)
VALUES = {
    "lr": numbers,
    "beta1": betas,
    "beta2": betas,
    "eps": numbers,
    "weight_decay": numbers,
    "decouple": st.booleans(),
    "clip_exp": st.none() | st.floats(0, 5, exclude_max=True),
    "beta2_warmup": st.just(False) | st.floats(0, 1, exclude_min=True),
    "maximize": st.booleans(),
    "backend": st.sampled_from(backends.NAMES),
    "capturable": st.booleans(),
    "state_bits": st.sampled_from([8, 16, 32]),
    "block_size": st.sampled_from([64, 128, 256, 512, 1024, 2048]),
    "bf16_stochastic_round": st.booleans(),
    "seed": st.integers(0, 2**63 - 1),
    "loraplus_lr_ratio": st.floats(1, LARGEST, exclude_max=True),
    "loraplus_lr_embedding": numbers,
    "monitor": st.booleans(),
}


@st.composite
def written(draw: st.DrawFn, values: dict[str, Any]) -> str:
    """One of the ways to write `values`."""

    def spelled(value: Any) -> str:
        if value is None:
            return draw(st.sampled_from(["none", "None", "null"]))
        if isinstance(value, bool):
            return draw(st.sampled_from(["true", "True", "yes", "on", "1"] if value else ["False", "no", "OFF", "0"]))
        if isinstance(value, float):
            return draw(st.sampled_from([repr(value), f"{value:.17g}", f"{value:.16e}".upper()]))
        return str(value)

    pairs = {key: spelled(value) for key, value in values.items()}
    if {"beta1", "beta2"} <= pairs.keys() and draw(st.booleans()):
        space = draw(st.sampled_from(["", " "]))
        template = draw(st.sampled_from(["({},{}{})", "[{},{}{}]"]))
        pairs["betas"] = template.format(pairs.pop("beta1"), space, pairs.pop("beta2"))
    equals = draw(st.sampled_from(["=", " = "]))
    items = [f"{key}{equals}{pairs[key]}" for key in draw(st.permutations(list(pairs)))]
    return draw(st.sampled_from([",", ", "])).join(items) + (draw(st.sampled_from(["", ",", ", "])) if items else "")


PIECES = st.sampled_from([*KEYS, *"=, ()[]\n\x1c", "0.9", "1e-8", "true", "none", "auto"])


def test_keys_are_the_arguments_of_adopt() -> None:
    """Whatever ADOPT takes can be written, the betas also one by one; LoRA+'s rates, and the monitor."""
    constructor = set(inspect.signature(ADOPT).parameters) - {"params", "unknown"}
    constructor -= {"float32_apart", "regroup"}  # depend on DeepSpeed and the Trainer, not on the user
    assert set(KEYS) == constructor | {"beta1", "beta2", *LORAPLUS, *OF_TRAINER}
    assert set(VALUES) == set(KEYS) - {"betas"}, "the properties below leave a key out"


@pytest.mark.parametrize(("text", "expected"), GOOD, ids=lambda x: repr(x) if not isinstance(x, dict) else "")
def test_good(text: str | None, expected: dict[str, Any]) -> None:
    values = parse(text)
    assert values == expected
    assert {key: type(value) for key, value in values.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(("text", "words"), BAD, ids=lambda x: repr(x) if isinstance(x, str) else "")
def test_bad(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\Aoptim_args: ") as error:
        parse(text)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == []


@given(st.data())
def test_what_is_written_comes_back(data: st.DataObject) -> None:
    values = data.draw(st.fixed_dictionaries({}, optional=VALUES))
    text = data.draw(written(values))
    parsed = parse(text)
    assert parsed == values
    assert all(type(parsed[key]) is type(value) for key, value in values.items())
    if any(isinstance(v, float) for v in values.values()):  # the property can tell one number from its neighbour
        key = next(k for k, v in values.items() if isinstance(v, float))
        assert parsed != values | {key: math.nextafter(values[key], math.inf)}


@given(st.text() | st.lists(PIECES).map("".join))
@example("beta2=0.9\u2028")
@example("betas=(0.9,0.99))")
@example("betas=((0.9,0.99)")
@example("lr=" + "9" * 5000)
@example("lr=1_0")
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    try:
        values = parse(text)
    except ValueError as error:
        message = str(error)
        assert message.startswith("optim_args:")
        assert len(message.splitlines()) == 1
    else:
        assert set(values) <= set(VALUES)
        assert parse(",".join(f"{key}={value}" for key, value in values.items())) == values
