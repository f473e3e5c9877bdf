"""Other tools' syntax in a prompt, and what says the same here.

list(foreign_syntax("a (cat:1.2)"))
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from runner.text import shorten

SCRIPT = "prompt|negative_prompt|styles|seed|steps|cfg_scale|width|height|sampler_name|batch_size|n_iter"
A1111_READS = "prompt_syntax: a1111 reads it"
FOREIGN_A1111 = (  # AUTOMATIC1111's syntax, what it is, and what says the same here
    (
        re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)"),
        f"emphasis in AUTOMATIC1111 and ComfyUI; {A1111_READS}, or words:number is a part",
    ),
    (re.compile(r"\({2,}[^()]+\){2,}"), f"emphasis in AUTOMATIC1111; {A1111_READS}, or words:number is a part"),
    (
        re.compile(r"(?<!\S)\[+[^\[\]]+\]+"),
        f"less emphasis, or a change on the way, in AUTOMATIC1111; {A1111_READS}",
    ),
    (
        re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE),
        f"a LoRA or a hypernetwork in AUTOMATIC1111; {A1111_READS} if it is a LoRA",
    ),
    (
        re.compile(r"(?<![A-Z]\s)\bBREAK\b(?!\s[A-Z]{2})"),
        f"a new piece in AUTOMATIC1111; {A1111_READS}, or long_prompts: chunk",
    ),
    (re.compile(r"(?<=[^\WA-Z]\s)AND(?=\s+[^\WA-Z])"), "two prompts at once in AUTOMATIC1111; here words:1 words:1"),
)
FOREIGN = (  # other tools' syntax likewise
    (re.compile(r"\{[^{}]*\|[^{}]*\}"), "a choice in Dynamic Prompts; here each is a prompt of its own"),
    (re.compile(r"\{+[^{}|]+\}+"), "emphasis in NovelAI; here words:number is a part"),
    (re.compile(r"(?<!\w)__[\w*/-]+__(?!\w)"), "a wildcard; here 'file: NAME.txt' is one prompt a line"),
    (re.compile(r"\bembedding:\s?[\w.-]+"), "an embedding in ComfyUI; here <name>, listed under 'embeddings'"),
    (re.compile(r"[^\s:]*::\s?-?\d*\.?\d*(?!\S)"), "a weight in Midjourney; here with one colon, words:number"),
    (
        re.compile(rf"(?<!\S)--(?:{SCRIPT})\b"),
        "an option of AUTOMATIC1111's prompts from file; here a key of the manifest",
    ),
    (
        re.compile(rf"(?<!\S)--(?!(?:{SCRIPT})\b)[a-z]+(?:\s+[^\s-]\S*)?"),
        "a parameter in Midjourney; here a key of the manifest",
    ),
)
# Stands in all of these, and in every weighted prompt; a search for one of a set of characters is quick.
SUSPECT = re.compile(r"[(\[{<:_BA-](?:(?<=[(\[{<:])|(?<=_)_|(?<=-)-|(?<=B)REAK|(?<=A)ND)")


def foreign_syntax(text: str, a1111: bool = False) -> Iterator[str]:
    """Other tools' syntax, each kind of it once; of a text in AUTOMATIC1111's, only what that isn't."""
    patterns = FOREIGN if a1111 else (*FOREIGN_A1111, *FOREIGN)
    for pattern, meaning in patterns if SUSPECT.search(text) else ():
        if found := pattern.search(text):
            yield f"'{shorten(found[0].strip(), 40)}' is {meaning}"
