"""Whether two models mean the same by a token."""

from __future__ import annotations

from pellucid.errors import ConfigError
from pellucid.frontend.tokenizer import Tokenizer, load_tokenizer
from pellucid.load.files import ModelFiles


def check_draft_vocabulary(files: ModelFiles, model: Tokenizer) -> None:
    """Compare what each token of the draft model spells, as far as both vocabularies go.

    One may be longer: models of one family pad theirs differently, and tokens that only one model
    has are not guessed.

    Raises:
        ConfigError: naming the first token that differs.
        ModelError: the draft model's tokenizer cannot be read.
    """
    draft = load_tokenizer(files)
    for token_id in range(min(draft.vocab_size, model.vocab_size)):
        theirs, ours = draft.token_bytes(token_id), model.token_bytes(token_id)
        if theirs != ours:
            raise ConfigError(
                f"--draft-model {files.name} has another vocabulary: its token {token_id} is"
                f" {theirs!r:.40}, the model's {ours!r:.40}",
                param="draft_model",
            )
