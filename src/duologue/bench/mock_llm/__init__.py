"""`duologue mock-llm`: OpenAI's API without a model, for load and chaos, far cheaper than what is measured against it.

It is a bare asyncio protocol that reads no more of HTTP than it needs and writes pieces that were encoded beforehand.
What it takes to say to it is in `config`, what it tells about itself in `stats`; `docs/mock-llm.md` describes both.
"""

from duologue.bench.mock_llm.config import MockConfig
from duologue.bench.mock_llm.wire import STAMP_PATTERN

__all__ = ["STAMP_PATTERN", "MockConfig"]
