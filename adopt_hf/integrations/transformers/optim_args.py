"""The text of `TrainingArguments.optim_args`, parsed into typed hyperparameters of ADOPT.

beta2=0.999, clip_exp=none, decouple=true, backend=foreach        or        betas=(0.9, 0.999)        or
loraplus_lr_ratio=16
"""

import difflib
import re

from adopt_hf.hyperparameters import HYPERPARAMETERS, LORAPLUS, OF_OPTIMIZER, OF_TRAINER, Hyperparameter

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
KEYS = (*OF_OPTIMIZER, "betas", *LORAPLUS, *OF_TRAINER)
ALLOWED = f"allowed keys: {', '.join(KEYS)}"

Value = float | bool | str | None


def parse(text: str | None) -> dict[str, Value]:
    """Parse `key=value` pairs that are separated by commas. Spaces and a trailing comma are ignored.

    None, an empty text and the text "None" have no pairs.

    Returns:
        Checked values by key. The keys are those of `HYPERPARAMETERS`. `betas=(...)` gives "beta1" and "beta2".

    Raises:
        ValueError: If a key is unknown or given twice, or a value is malformed or out of range. The message says what
            is allowed.
    """
    if text is not None and not isinstance(text, str):
        raise ValueError(f"optim_args: must be text like 'beta2=0.999, eps=1e-6', got {text!r}")
    if (text or "").strip().lower() in ("none", "null"):  # of a search trial that sets None
        text = None
    values: dict[str, Value] = {}
    for item in _items(text or ""):
        key, equals, raw = item.partition("=")
        key, raw = key.strip(), raw.strip()
        if not equals or not key or not raw:
            raise ValueError(f"optim_args: {item.strip()!r} is not of the form key=value; {ALLOWED}")
        for name, value in _read(key, raw):
            if name in values:
                raise ValueError(f"optim_args: {name!r} is given twice, in {text!r}")
            values[name] = value
    return values


def _items(text: str) -> list[str]:
    """Split `text` at the commas outside of brackets."""
    items = re.split(r",(?![^(\[]*[)\]])", text)
    if not items[-1].strip():
        items.pop()
    return items


def _read(key: str, raw: str) -> list[tuple[str, Value]]:
    if key == "betas":
        pair = re.fullmatch(r"[(\[]([^,]*),([^,]*)[)\]]", raw)
        if not pair:
            raise ValueError(f"optim_args: betas must be written betas=(beta1, beta2), got {raw!r}")
        return [("beta1", _typed("beta1", pair[1].strip())), ("beta2", _typed("beta2", pair[2].strip()))]
    if key not in HYPERPARAMETERS:
        close = difflib.get_close_matches(key, KEYS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"optim_args: unknown key {key!r}{hint}; {ALLOWED}")
    return [(key, _typed(key, raw))]


def _typed(key: str, raw: str) -> Value:
    hyperparameter = HYPERPARAMETERS[key]
    try:
        checked: Value = hyperparameter.check(key, _from_text(hyperparameter, raw))
    except ValueError as error:
        raise ValueError(f"optim_args: {error}") from None
    return checked


def _from_text(hyperparameter: Hyperparameter, raw: str) -> Value:
    """Return `raw` as the type of the hyperparameter, or unchanged if it cannot be converted."""
    if hyperparameter.optional and raw.lower() in ("none", "null"):
        return None
    if hyperparameter.type is str:
        return raw
    if hyperparameter.type is bool:
        return True if raw.lower() in TRUE else False if raw.lower() in FALSE else raw
    if hyperparameter.true is not None and raw.lower() in {*TRUE, *FALSE} - {"1"}:  # "1" is a number here
        return raw.lower() in TRUE
    for number in (int, float) if hyperparameter.type is int else (float,):
        try:
            return number(raw)
        except ValueError:
            continue
    return raw
