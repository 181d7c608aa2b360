"""URIs: what is read from each form, and that none can leave the place it names."""

import re
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import uris
from finetune_api.fields import Format
from finetune_api.uris import Scheme, Uri
from tests.constraint_rows import DATA, FORMATS


def regex(annotated: object) -> str:
    _, *metadata = typing.get_args(annotated)
    (found,) = (part for part in metadata if isinstance(part, Format))
    return found.regex


ANY = st.one_of(
    *(st.from_regex(re.compile(regex(form), re.ASCII), fullmatch=True) for form in (uris.ModelUri, uris.DataUri))
)


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("hf://org/name", Uri(Scheme.HUB, "org/name")),
        ("hf://gpt2@v1.0", Uri(Scheme.HUB, "gpt2", revision="v1.0")),
        ("hf://org/name@refs/pr/1", Uri(Scheme.HUB, "org/name", revision="refs/pr/1")),
        ("hf://org/name@main:train", Uri(Scheme.HUB, "org/name", revision="main", split="train")),
        ("pvc://claim", Uri(Scheme.CLAIM, "claim")),
        ("pvc://claim/a/b c.jsonl", Uri(Scheme.CLAIM, "claim", "a/b c.jsonl")),
        ("pvc://claim/a/", Uri(Scheme.CLAIM, "claim", "a")),
        ("configmap://name/train.jsonl", Uri(Scheme.CONFIG_MAP, "name", "train.jsonl")),
        ("s3://bucket/a", Uri(Scheme.S3, "bucket", "a")),
        ("https://host:8443/a?b=c", Uri(Scheme.HTTPS, "host:8443", "a?b=c")),
        ("run://other/ep1-ba500", Uri(Scheme.RUN, "other", "ep1-ba500")),
    ],
)
def test_each_form_is_read(value: str, parsed: Uri) -> None:
    assert Uri.parse(value) == parsed


@pytest.mark.parametrize("value", [*DATA[0], *FORMATS["spec.model.uri"][0]])
def test_what_the_formats_take_is_read(value: str) -> None:
    assert value.startswith(f"{Uri.parse(value).scheme}://")


@given(ANY)
def test_whatever_the_formats_take_is_read_and_stays_where_it_is(value: str) -> None:
    uri = Uri.parse(value)
    parts = f"{uri.name}/{uri.path}/{uri.revision or ''}".split("/")
    assert ".." not in parts
    assert not uri.path.startswith("/")


@pytest.mark.parametrize(
    "value",
    ["", "claim/path", "file:///etc/passwd", "pvc://", "pvc://a/../b", "pvc://a//b", "pvc://a/%2e%2e/b", "hf://a/b/c"],
)
def test_anything_else_is_refused_with_the_value_and_a_form_that_is_right(value: str) -> None:
    with pytest.raises(ValueError, match="://") as caught:
        Uri.parse(value)
    assert repr(value) in str(caught.value)
