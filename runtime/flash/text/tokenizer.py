"""The tokenizer that travels in a pack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import BundleError, RuntimeMissing
from ..layout import CHAT_TEMPLATE_NAME, TOKENIZER_NAME

# What a token's bytes decode to while a character is not complete.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class PackTokenizer:
    """Raises BundleError for a pack without a tokenizer, RuntimeMissing where `tokenizers` is not installed."""

    def __init__(self, pack: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise RuntimeMissing("Text needs the package tokenizers: pip install 'handheld[llm]'.") from error
        path = pack / TOKENIZER_NAME
        if not path.is_file():
            raise BundleError(f"{pack} has no {TOKENIZER_NAME}: its checkpoint had no tokenizer. Copy one there.")
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for whatever the file says
            raise BundleError(f"{path} is no tokenizer: {error}.") from error
        self._template = pack / CHAT_TEMPLATE_NAME

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens that the text spells out count as such."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of tokens as they come, in pieces of whole characters."""
        seen: list[int] = []
        shown = ""
        for token in tokens:
            seen.append(token)
            text = self.decode(seen)
            if not text.endswith(_INCOMPLETE):
                yield text[len(shown) :]
                shown = text
        yield self.decode(seen)[len(shown) :]

    def chat(self, prompt: str) -> str:
        """The prompt as a user's turn, in the form that the model was taught. Raises BundleError for a model that
        was taught none."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if not self._template.is_file():
            raise BundleError(
                f"{self._template.parent} has no {CHAT_TEMPLATE_NAME}: its model was not taught to chat."
            )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            template = environment.from_string(self._template.read_text(encoding="utf-8"))
            return template.render(messages=[{"role": "user", "content": prompt}], add_generation_prompt=True)
        except TemplateError as error:
            raise BundleError(f"{self._template} cannot be used: {error}.") from error
