"""A byte-level BPE tokenizer of 896 tokens: the words of questions and instructions are single tokens, and every
byte has one, so that any text can be read and written back."""

from itertools import product

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from aegis_backbones.questions import ALL_SHAPES, COLUMNS, PHRASINGS, ROWS
from aegis_envs.objects import COLOURS

VOCABULARY_SIZE = 896
PAD, EOS, BOS, UNKNOWN, IMAGE = "<pad>", "<eos>", "<bos>", "<unk>", "<image>"

INSTRUCTIONS = (
    "touch the {a}",
    "push the {a} onto the {b}",
    "put the {a} on the {b}",
    "pick up the {a} and place it on the {b}",
    "lift the {a}",
    "grasp the {a}",
    "move the {a} to the {b}",
    "slide the {a} towards the {b}",
    "Please reach for the {a} with the gripper.",
    "raise the {a} off the table",
)
EVERYDAY_WORDS = """
the of and to in is it that for on with as at by this from or an are be was not you have they his her one all we can
there their your which do how if will each about up out many then them these so some would make like into him time has
look two more write go see number no way could people my than first water been call who its now find long down day did
get come made may part over new sound take only little work know place year live me back give most very after thing
our just name good sentence man think say great where help through much before line right too mean old any same tell
boy follow came want show also around form three small set put end does another well large must big even such because
turn here why ask went men read need land different home us move try kind hand picture again change off play spell air
away animal house point page letter mother answer found study still learn should world high every near add food
between own below country plant last school father keep tree never start city earth eye light thought head under story
saw left few while along might close something seem next hard open example begin life always those both paper together
got group often run robot arm gripper camera table block box bowl plate cup button drawer door push pull lift drop
grasp release stack sort rotate slide reach touch towards toward onto inside outside front behind beside corner edge
top bottom middle center centre red green blue yellow purple orange black white grey gray brown pink cube ball
cylinder disc target object objects things scene task step goal four five six seven eight nine ten zero yes circle
square round flat small tall slowly carefully please now then first second third finally gently quickly
""".split()  # noqa: SIM905  a list of one word a line hides the rest of this file


def train_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, from nothing; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    # GPT-2's splitting plus one rule: a digit is a token, so that counts and numbers do not merge.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Type 0 for the prompt and 1 for the answer: that is what PaliGemma's attention mask is made from.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    specials = [AddedToken(t, special=True, normalized=False) for t in (PAD, EOS, BOS, UNKNOWN, IMAGE)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _corpus() -> list[str]:
    """Questions, answers and instructions many times, everyday English a few times."""
    things = [f"{c} {s}" for c, s in product(COLOURS, ALL_SHAPES)]
    plurals = [f"{t}s" for t in things] + ["objects"]
    lines: list[str] = []
    for i, thing in enumerate(things):
        other, colour, shape = things[(7 * i + 3) % len(things)], *thing.split()
        for templates in PHRASINGS.values():
            lines += [
                t.format(a=thing, b=other, thing=thing, things=plurals[i], shape=shape, colour=colour)
                for t in templates
            ]
        lines += [t.format(a=thing, b=other) for t in INSTRUCTIONS]
    lines += [*COLOURS, *ALL_SHAPES, *ROWS, "left", "right", "above", "below", "yes", "no"] * 40
    lines += [f"{row} {column}" for row, column in product(ROWS, COLUMNS)] * 20
    lines += ["red object", "green objects", "Is there", "How many objects", "center"] * 20
    lines += [" " + " ".join(EVERYDAY_WORDS)] * 3 + [w.capitalize() for w in EVERYDAY_WORDS]
    return lines
