"""Whether the runtime has every operator of a converted file: litert-torch writes some that it does not."""

from __future__ import annotations

import re

from edgekit.core.errors import UnsupportedModelError
from edgekit.core.extras import require
from edgekit.core.program import first_line

_MISSING = re.compile(r"builtin opcode '(?P<builtin>\w+)'|custom op(?:eration)?:? '?(?P<custom>\w+)")


def require_loadable(content: bytes, source: str) -> None:
    """Have the runtime look up every operator, without allocating anything.

    Raises:
        UnsupportedModelError: It lacks one, or refuses the file for another reason.
    """
    module = require("ai_edge_litert.interpreter", "litert", "checking a .tflite file")
    try:
        module.Interpreter(
            model_content=content,
            num_threads=1,
            experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    except (ValueError, RuntimeError) as error:
        match = _MISSING.search(str(error))
        name = (match["builtin"] or match["custom"]) if match else None
        raise UnsupportedModelError(
            f"The runtime has no operator {name}, which litert-torch makes of {source}."
            if name
            else f"The runtime refuses what litert-torch makes of {source}: {first_line(error)}",
            "Write that part of the model with other operators; another backend may take it as it is.",
        ) from error
