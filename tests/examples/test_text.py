"""The text that the recipes train on: data sets that cannot be used are named, and hashes choose what is held out."""

from pathlib import Path

import datasets
import pytest

from examples.shared import text
from examples.shared.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_library_is_that_of_a_folder_without_tests_and_packages(tmp_path: Path) -> None:
    names = ("b.py", "a/c.py", "a/notes.txt", "test/d.py", "site-packages/e.py")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(relative) for _, relative in text.library_files(tmp_path)] == ["a/c.py", "b.py"]


def test_a_hash_selects_a_share() -> None:
    chosen = [text.is_one_in(10, str(number).encode()) for number in range(2000)]
    assert chosen == [text.is_one_in(10, str(number).encode()) for number in range(2000)]
    assert abs(sum(chosen) - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5  # standard deviations of a fair draw


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        (None, "train", "data set 'json' cannot be loaded: Unable to find"),
        ("", "train", "data set 'json' cannot be loaded: "),
        ('{"a": "b"}\n', "test", "data set 'json' has no split 'train'; it has test"),
    ],
)
def test_a_data_set_that_cannot_be_used(content: str | None, split: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError) as error:
        text.load_splits("json", data_files={split: str(file)})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) > len("data set 'json' cannot be loaded: ")


def test_the_column_and_the_held_out_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"a": "b"}\n')
    splits = text.load_splits(str(tmp_path))
    assert text.held_out_split(splits) == "test"
    assert text.held_out_split(datasets.DatasetDict(train=splits["train"])) is None
    text.check_column(splits["train"], "a", "mine", "text_column")
    with pytest.raises(InputError, match="data set 'mine' has no column 'b'; pass --text_column, one of: a"):
        text.check_column(splits["train"], "b", "mine", "text_column")


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^tokenizer '{tmp_path}' cannot be loaded: "):
        text.load_tokenizer(str(tmp_path))


def test_a_bpe_needs_no_unknown_token() -> None:
    bpe = text.train_bpe(["alpha beta", "alpha gamma"], 300, [text.END_OF_TEXT, "<|padding|>"])
    assert [bpe.token_to_id(token) for token in (text.END_OF_TEXT, "<|padding|>")] == [0, 1]
    for written in ("alpha beta\n\tgamma é", " two  spaces ", ""):
        assert bpe.decode(bpe.encode(written).ids) == written
