"""What the chat's page says to who has never seen it: the experiment, one step at a time, above the message box."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from memory_titan.app.chat_log import Entry, Note, Said

# Something nobody else knows, and a question about it in other words.
EXAMPLES = (
    (
        "The door of the boat shed now opens with the code 5-0-8-2.",
        "Which numbers do I key in to unlock the boat shed?",
    ),
    ("The vet who looks after our old dog is called Doctor Okonkwo.", "Who treats our dog when he is ill?"),
    ("I have to be at the dentist on 14 March at twenty past nine.", "When is my dental appointment?"),
)


def guide_html(log: Sequence[Entry], held: int) -> str:
    """The next step of the experiment; empty once it has been done, or when something else is going on."""
    if not log:
        return _welcome() if not held else _welcome_back(held)
    last = log[-1]
    cleared = [index for index, each in enumerate(log) if isinstance(each, Note) and each.kind == "cleared"]
    told = [each.message for each in log if isinstance(each, Said) and _wrote(each)]
    if isinstance(last, Said) and not last.live and not cleared and told:
        more = [fact for fact, _ in EXAMPLES if fact not in told] if len(told) < len(EXAMPLES) else []
        again = f"Tell it more{_fills(more)}or go on:" if more else "Now"
        return _step(2, f'{again} <button type="button" class="step" data-press="clear">clear the context</button>')
    if cleared and cleared[-1] == len(log) - 1 and told:
        questions = [question for fact, question in EXAMPLES if fact in told]
        ask = f"Ask it, in other words:{_fills(questions)}" if questions else "Ask it about what you told it before."
        return _step(3, ask)
    if len(cleared) == 1 and isinstance(last, Said) and not last.live and _spoke(last):
        return _step(
            4,
            "That was nowhere in its context: it came out of the weights. Ask again with Compare, or after Forget.",
        )
    return ""


def _welcome() -> str:
    return (
        '<div class="welcome"><h2>Tell it something. Wipe its context. Ask.</h2>'
        "<p>A language model forgets everything outside its context. This one is frozen too, but it has a small memory "
        "beside it, made of weights, that learns while you talk.</p>"
        '<ol class="steps"><li><h3>Tell it something only you know</h3>'
        f'<div class="fills">{_fills([fact for fact, _ in EXAMPLES])}</div></li>'
        "<li><h3>Clear the context</h3><p>The model then sees nothing of what was said.</p></li>"
        "<li><h3>Ask, in other words</h3><p>If it answers, the memory did it. You will see what it recalled, and how "
        "sure it was.</p></li></ol></div>"
    )


def _welcome_back(held: int) -> str:
    texts = f"{held:,} text{'s are' if held > 1 else ' is'}"
    return (
        f'<div class="welcome"><h2>Welcome back</h2><p>{texts} still in your memory. The conversation before is gone; '
        "ask about anything you told it then, or tell it more.</p></div>"
    )


def _step(number: int, html: str) -> str:
    return f'<div class="hint"><b>{number}</b><div>{html}</div></div>'


def _fills(texts: Sequence[str]) -> str:
    return " ".join(
        f'<button type="button" class="fill" data-fill="{escape(text)}">{escape(text)}</button>' for text in texts
    )


def _wrote(said: Said) -> bool:
    return said.turn is not None and any(each.written for each in said.turn.readings)


def _spoke(said: Said) -> bool:
    return said.turn is not None and said.turn.answer.spoke
