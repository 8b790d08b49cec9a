"""The texts whose token ids the golden files hold: hard ones written by hand, long ones, and random ones.

Random texts come from a generator of our own, so that they are the same under every version of Python. All
texts are bytes without a zero byte, because the program reads many of them from one stream (--null)."""

HARD = [
    # White space.
    b" ", b"  ", b"   ", b"\t", b"\t\t", b"\n", b"\n\n", b"\n\n\n", b"\r\n", b"\r", b" \n", b"\n ", b"\t\n",
    b"Hello", b" Hello", b"  Hello", b"   Hello", b"Hello ", b"Hello  ", b"Hello world", b"Hello  world",
    b"Hello\tworld", b"Hello\n\n world", b"a\n \n  \n   b", b"\n =", b"    indented\n\tby\n\t  both",
    "a\u00a0b\u2003c\u3000d\u0085e\u2028f\u200bg\ufeffh\u1680i".encode(),
    # Words.
    b"The quick brown fox jumps over the lazy dog.", b"don't I'll we've IT'S they'RE 'tis ''s 'D",
    b"camelCase PascalCase snake_case SCREAMING_CASE kebab-case HTTPServer2Go", b"supercalifragilisticexpialidocious",
    b"Hello, y'all! How are you \xf0\x9f\x98\x81 ?", b"w048 7tuijk dsdfhu", b"ied 4 \xc2\xbd months",
    # Digits.
    b"0", b"1", b"12", b"123", b"1234", b"12345", b"123456", b"1234567", b"3.14159", b"1,000,000", b"1e-10",
    b"2024-02-29T23:59:60Z", "\u0661\u0662\u0663 \u09e7\u09e8 \u0e51\u0e52 \u2167 x\u00b2 \u2460 \u4e00\u4e8c".encode(),
    # Scripts.
    "中文没有空格。这是一个测试！".encode(), "日本語のテキスト、カタカナとひらがな。".encode(), "한국어 텍스트입니다".encode(),
    "ភាសាខ្មែរ ទេ១".encode(), "हिन्दी में लिखा हुआ".encode(), "বাংলা লেখা".encode(), "ภาษาไทยไม่มีช่องว่าง".encode(),
    "العربية من اليمين، إلى اليسار؟".encode(), "עברית מימין".encode(), "Привет, мир! ПРИВЕТ".encode(),
    "Ελληνικά ΚΑΙ".encode(), "ქართული Ⴀ".encode(), "Tiếng Việt có dấu".encode(), "ñandú façade Übergröße ﬁ ŒŒ".encode(),
    "e\u0301 é e\u0323\u0302 \u1ec7 \u0301".encode(), "İstanbul ıI ſ K Å ß ẞ".encode(), "\U00020000\U0002a6d6\U0002ebf0\ufa0e\u3007".encode(),
    # Symbols.
    "😀".encode(), "😀😃😄".encode(), "👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵".encode(), "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙".encode(),
    "→ ≠ ∑ √ ∞ € £ ¥ ₿ © ® ™ § ¶ † … — – • “quoted” ‘single’ «fr»".encode(), b"!@#$%^&*()_+-=[]{}|;':\",./<>?`~\\",
    b"!!!!!!", b"......", b"----------", b"=====", b"''''''```````\"\"\"\"......!!!!!!??????", b"?!?!", b"a/b\\c|d",
    # Code.
    b"def f(x):\n    return x + 1\n\n\nif __name__ == '__main__':\n\tprint(f\"{f(2)!r}\")\n",
    b"#include <stdio.h>\nint main(void) { for (int i = 0; i < 10; i++) printf(\"%d\\n\", i); return 0; }\n",
    b"SELECT * FROM `t` WHERE a >= 1 AND b <> 'x''y'; -- comment", b"{\"a\":[1,2.5,null,true],\"b\":{\"c\":\"\\u00e9\"}}",
    b"<!DOCTYPE html><div class=\"a b\">&nbsp;</div>", b"https://example.com/a/b?c=d&e=%20f#g user@example.org",
    # Invalid UTF-8.
    b"\x80", b"\xff\xfe", b"a\x80b", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82 ", b"\xf0\x9f\x98", b"x\xf0\x9f\x98y",
    b"\xed\xa0\x80", b"\xc1\x81", b"\xe0\x80\xaf", b"\xf8\x88\x80\x80\x80", b"\xc3\xa9\xa9\xc3\xc3\xa9",
    # Control characters and the odd ends of Unicode.
    b"\x01\x02\x1b[31mred\x7f", "\u0085\u00ad\u061c\u200d\u202e\ue000\ufffd\uffff\U0010ffff".encode(),
    # Text of special tokens, of these vocabularies and of others.
    b"<s>", b"</s>", b"<unk>", b"<s>Hello</s>", b"<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    b"<|im_start|>system\nYou are.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n", b" <|im_end|> ", b"<|im_end", b"<|endoftext|><|endoftext|>",
    b"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", b"[CLS] hello [MASK] [SEP]", b"<mask> <pad>",
    b"<|user|>\n Hi <|end|>\n<|assistant|>", b"<fim_prefix>a<fim_suffix>b<fim_middle>", b"<unused5> <0x0A> <0xE2>", b"<tool_call>{}</tool_call><think>\n",
    "▁ ▁▁ ▁Hello Ġ ĠHello Ċ".encode(),
    # Long ones.
    b"a" * 5000, b" " * 3001, b"\n" * 2000, b"ab " * 2000, b"1234567890" * 300, "é".encode() * 2000, "中".encode() * 2000,
    "😀".encode() * 700, b"\xff" * 1000, b"<|im_end|>" * 300, b"The quick brown fox. " * 200,
]

WORDS = """ the and ing Hello WORLD don't 'S 'll 'RE 1 12 123 4567 ٣ ½ Ⅷ é é ñ ß K 中 文字 こんにちは カタカナ 한국어 가
𠀀 豈 😀 👍🏽 👨‍👩‍👧 🇩🇪 . .. ... ! ? , ; ( ) { } [] </ < > | <| |> _ -- == + * / \\ " ' ` ~ ^ $ € © → ∑ “ ” — … । ، ก เ हि বাংলা
שלום مرحبا Привет Ελλ ა ⴀ \u0301 \u20dd \x01 \x1c \x7f \u00ad \ue000 \u0378 ▁ Ġ <0x0A> <s> </s> <unk> <|endoftext|> <|im_end|>
<bos> <eos> <end_of_turn> [MASK] <unused5> <|eot_id|> def f(x): http://a.b/c?d x_y camelCase ÀÉÎ àéî""".split()
SPACES = [" ", " ", " ", "  ", "\t", "\n", "\r\n", "\n\n", "    ", "\u00a0", "\u3000"]
BROKEN = [b"\x80", b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc1\x81"]


class Generator:
    """xorshift64*."""

    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        self.state ^= self.state >> 12
        self.state = (self.state ^ self.state << 25) & (1 << 64) - 1
        self.state ^= self.state >> 27
        return (self.state * 0x2545F4914F6CDD1D & (1 << 64) - 1) % bound

    def of(self, items):
        return items[self.below(len(items))]


PLANES = [(1, 0x250), (1, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x32000), (0x1F000, 0x1FB00)]


def random_text(generator):
    kind, parts = generator.below(4), []
    for _ in range(1 + generator.below(30)):
        if kind == 0 or (kind == 1 and generator.below(4)):
            parts.append((generator.of(WORDS) if generator.below(3) else generator.of(SPACES)).encode())
        elif kind == 1:
            parts.append(generator.of(BROKEN))
        elif kind == 2:
            first, past = generator.of(PLANES)
            parts.append(chr(first + generator.below(past - first)).encode())
        else:
            parts.append(bytes([32 + generator.below(95)]) if generator.below(9) else generator.of(SPACES).encode())
    return b"".join(parts)


def random_texts(count=1000):
    generator = Generator(0x5EED)
    return [random_text(generator) for _ in range(count)]
