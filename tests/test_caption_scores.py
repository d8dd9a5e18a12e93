"""BLEU, CIDEr-D and ROUGE-L of captions against counts, loops and stored values of COCO's caption toolkit."""

import math
from collections import Counter

import pytest

from dltrain.tasks.caption_words import caption_words
from dltrain.tasks.captioning import caption_scores

SENTENCES = {0: "a red cat sits on the mat", 1: "the dog runs", 2: "a cat"}
REFERENCES = {0: ["a red cat sits on a mat", "there is a cat on the mat"], 1: ["a dog runs fast", "the dog is fast"],
              2: ["a cat", "one cat"]}


def count_grams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def test_bleu_equals_a_count_by_hand():
    """Clipped n-gram counts over all images, the closest reference's length (Papineni et al., 2002)."""
    scores = caption_scores(SENTENCES, REFERENCES)
    logs = []
    for n in range(1, 5):
        num_right = num_grams = 0
        for number, sentence in SENTENCES.items():
            grams, most = count_grams(sentence, n), Counter[tuple[str, ...]]()
            for reference in REFERENCES[number]:
                most |= count_grams(reference, n)
            num_right += (grams & most).total()
            num_grams += grams.total()
        logs.append(math.log(num_right / num_grams))
        brevity = math.exp(1 - (7 + 4 + 2) / (7 + 3 + 2))
        assert scores[f"bleu_{n}"] == pytest.approx(brevity * math.exp(sum(logs) / n), abs=1e-6), n


def test_cider_equals_a_loop():
    """R. Vedantam et al., 2014, 1411.5726, CIDEr-D: clipped tf-idf cosines, a Gaussian on the length, times ten."""
    totals = []
    for number, sentence in SENTENCES.items():
        by_n = []
        for n in range(1, 5):
            frequencies = Counter(gram for references in REFERENCES.values() for gram in set().union(
                *(count_grams(reference, n) for reference in references)))

            def weigh(text: str, n: int = n, frequencies: Counter = frequencies) -> dict[tuple[str, ...], float]:
                return {gram: count * (math.log(3) - math.log(max(1, frequencies[gram])))
                        for gram, count in count_grams(text, n).items()}

            vector, similarities = weigh(sentence), []
            for reference in REFERENCES[number]:
                other = weigh(reference)
                dot = sum(min(vector[gram], other[gram]) * other[gram] for gram in vector if gram in other)
                norms = [math.sqrt(sum(value**2 for value in values.values())) for values in (vector, other)]
                gap = len(sentence.split()) - len(reference.split())
                cosine = dot / (norms[0] * norms[1]) if all(norms) else 0.0
                similarities.append(cosine * math.exp(-gap**2 / 72))
            by_n.append(sum(similarities) / len(similarities))
        totals.append(10 * sum(by_n) / 4)
    assert caption_scores(SENTENCES, REFERENCES)["cider"] == pytest.approx(sum(totals) / 3, abs=1e-6)
    assert sum(totals) / 3 > 1


def longest_common_subsequence(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_equals_a_loop():
    """C.-Y. Lin, 2004, ROUGE-L with beta = 1.2: the best precision and the best recall over the references."""
    measures = []
    for number, sentence in SENTENCES.items():
        words, references = sentence.split(), [reference.split() for reference in REFERENCES[number]]
        common = [longest_common_subsequence(words, reference) for reference in references]
        precision = max(common) / len(words)
        recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
        measures.append((1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision))
    assert caption_scores(SENTENCES, REFERENCES)["rouge_l"] == pytest.approx(sum(measures) / 3, abs=1e-6)


# Sentences, and what PTBTokenizer of pycocoevalcap 1.2 (with Java) makes of them.
TOOLKIT_WORDS = [
    ("A man's T-shirt isn't dry, and he can't find his hat.",
     "a man 's t-shirt is n't dry and he ca n't find his hat"),
    ("Two dogs (one brown, one black) run; the third doesn't!",
     "two dogs -lrb- one brown one black -rrb- run the third does n't"),
    ('"Wait..." says the girl - she is ten years old!!', "wait says the girl she is ten years old !!"),
    ("A 10-year-old boy in a red-and-white cap eats 1,000 peas at 3:30pm.",
     "a 10-year-old boy in a red-and-white cap eats 1,000 peas at 3:30 pm"),
    ("Mr. Smith's dogs' leashes cost $5.50 & 50% of them broke.",
     "mr. smith 's dogs leashes cost $ 5.50 & 50 % of them broke"),
    ("Rock 'n' roll players of the '70s at a black/white piano near St. Mary's.",
     "rock 'n' roll players of the '70s at a black/white piano near st. mary 's"),
    ("The U.S. flag -- it’s huge — flies over a café…", "the u.s. flag it 's huge flies over a café"),
    ("They're gonna play No. 5, but you cannot see #5 in the 6'2\" man's hands.",
     "they 're gon na play no. 5 but you can not see # 5 in the 6 2 man 's hands"),
    ("  A cat   sits on the mat  .", "a cat sits on the mat"),
    ("a tri - colored dog and a tri-colored cat .", "a tri colored dog and a tri-colored cat")]


@pytest.mark.parametrize(("sentence", "expected"), TOOLKIT_WORDS)
def test_words_are_those_of_the_toolkit(sentence, expected):
    assert caption_words(sentence) == expected


def test_scores_of_sentences_with_punctuation_are_those_of_the_toolkit():
    """The values are those of pycocoevalcap 1.2 with its PTBTokenizer."""
    sentences = {0: "a red cat sits on the mat .", 1: "the dog's ball , (a big one) rolls down a hill .",
                 2: "two men in t-shirts !"}
    references = {0: ["A red cat, asleep, sits on a mat.", "There's a cat on the mat!"],
                  1: ["A dog's ball rolls down a hill.", "The ball (a red one) rolls; the dog runs."],
                  2: ["Two men wear T-shirts.", "Men in white T-shirts - two of them."]}
    assert caption_scores(sentences, references) == pytest.approx({
        "bleu_1": 0.9583333333, "bleu_2": 0.8807914911, "bleu_3": 0.6706932239, "bleu_4": 0.3765911625,
        "rouge_l": 0.7456903285, "cider": 3.0428805694}, abs=1e-9)
