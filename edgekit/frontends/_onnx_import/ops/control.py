"""Control flow that folds away, and what cannot be taken at all."""

from __future__ import annotations

from edgekit.frontends._onnx_import.call import Call
from edgekit.frontends._onnx_import.libs import Value
from edgekit.frontends._onnx_import.registry import handles, refuse

refuse("a loop's number of steps can depend on the data; unroll it when the model is exported", "Loop", "Scan")
refuse("how many boxes it keeps depends on the data; do it in the app, behind the model", "NonMaxSuppression")
refuse(
    "it draws random numbers; a compiled model has to compute the same each time",
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
refuse(
    "it works on strings, which no target computes; do it in the app, before the model",
    "LabelEncoder",
    "RegexFullMatch",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "TfIdfVectorizer",
)
refuse("it decodes a file format; do it in the app, before the model", "ImageDecoder")
refuse(
    "it works on sequences or optional values, which a compiled model cannot pass on",
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SplitToSequence",
)
for _domain in ("", "ai.onnx.preview.training"):
    refuse("it trains; export the model for inference", "Adagrad", "Adam", "Gradient", "Momentum", domain=_domain)


@handles("If")
def if_(call: Call, condition: Value) -> tuple[Value, ...]:
    """The branch that a known condition takes."""
    taken = bool(call.known(0).reshape(-1)[0].item())
    return call.subgraph(call.attr("then_branch" if taken else "else_branch"))
