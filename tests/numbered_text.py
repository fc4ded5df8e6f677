"""Texts made of numbers, and a tokenizer that reads them: each token tells which document it came from."""

END = 0


class Words:
    """A tokenizer whose ids are the numbers that the text spells (7 for a word), after ``opening``."""

    eos_token_id = END

    def __init__(self, *opening, closing=()):
        self.opening, self.closing = opening, closing

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = [int(word) if word.isdigit() else 7 for word in text.split()]
        return {"input_ids": [*self.opening, *ids, *self.closing] if add_special_tokens else ids}


def document(number, length):
    """A text whose ids tell which document they came from."""
    return " ".join(str(1000 * (number + 1) + position) for position in range(length))


def origins(windows):
    """The documents, counted from 1, of which tokens stand in the windows."""
    return {int(token) // 1000 for window in windows for token in window if token >= 1000}
