/* text/pretokenizers.c: one row a name. A new name is a new row; a new way of cutting is a new
 * expression above the table.
 *
 * The expressions are the published ones of each model's tokenizer.json, in the form that llama.cpp
 * gives them, since its ids are the reference. Some are written otherwise where that matches the same
 * text without backtracking; a comment says so. How they are read is in splitter.h. */
#include "text/pretokenizers.h"

#include <string.h>

/* Parts. */
#define CONTRACTIONS     "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define WORD             "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define MARKS            " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
#define MARKS_SLASH      " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*"
#define BREAKS           "\\s*[\\r\\n]+"
#define SPACES           "\\s+(?!\\S)|\\s+"
#define BREAKS_OR_SPACES BREAKS "|" SPACES

/* GPT-2's. */
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|" SPACES
/* Llama 3's, and its relatives by how many digits go together. */
#define LLAMA3     CONTRACTIONS "|" WORD "|\\p{N}{1,3}|" MARKS "|" BREAKS_OR_SPACES
#define QWEN2      CONTRACTIONS "|" WORD "|\\p{N}|" MARKS "|" BREAKS_OR_SPACES
#define MINICPM5   CONTRACTIONS "|" WORD "|\\p{N}+|" MARKS "|" BREAKS_OR_SPACES
#define UFAKZEKA   WORD "|\\p{N}|" MARKS "|" BREAKS_OR_SPACES
#define BAILINGMOE CONTRACTIONS "|" WORD "|\\p{N}|" MARKS "|\\s*[\\r\\n]|" SPACES
#define SEED_CODER CONTRACTIONS "|" WORD "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" BREAKS_OR_SPACES
#define QWEN35                                                                                     \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"                                   \
                 "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" BREAKS_OR_SPACES
/* Published as (?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+ in the middle: a letter, then letters, marks and
 * single spaces that a letter follows. */
#define EXAONE_MOE                                                                                 \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}(?:[\\p{L}\\p{M}]++| (?=\\p{L}))*+|\\p{N}"          \
                 "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|" SPACES

/* Upper case then lower case, where letters that are not ASCII count as both. Published as
 * ((?=[\p{L}])([^a-z]))* and the like, which classes say without a group. */
#define UPPER             "[\\p{WideL}A-Z]"
#define LOWER             "[\\p{WideL}a-z]"
#define CASED(lead, tail) lead "?" UPPER "*" LOWER "+" tail "|" lead "?" UPPER "+" LOWER "*" tail
#define LEAD              "[^\\r\\n\\p{L}\\p{N}]"
#define TEKKEN            CASED(LEAD, "") "|\\p{N}|" MARKS_SLASH "|" BREAKS_OR_SPACES
#define GPT4O             CASED(LEAD, CONTRACTIONS "?") "|\\p{N}{1,3}|" MARKS_SLASH "|" BREAKS_OR_SPACES
#define UPPER_M           "[\\p{WideL}\\p{M}A-Z]"
#define LOWER_M           "[\\p{WideL}\\p{M}a-z]"
#define GRANITE_EMB                                                                                \
    LEAD "?" UPPER_M "*" LOWER_M "+" CONTRACTIONS "?|" LEAD "?" UPPER_M "+" LOWER_M                \
         "*" CONTRACTIONS "?|\\p{N}{1,3}|" MARKS_SLASH "|" BREAKS_OR_SPACES
/* Published with \p{Lu} and \p{Ll} apart, which the reference reads as all letters. */
#define LETTERS_MARKS LEAD "?[\\p{L}\\p{M}]+" CONTRACTIONS "?"
#define TINY_AYA      LETTERS_MARKS "|\\p{N}{1,3}|" MARKS_SLASH "|" BREAKS_OR_SPACES
#define YOUTU         LETTERS_MARKS "|\\p{N}|" MARKS_SLASH "|" BREAKS_OR_SPACES

/* Chinese characters by themselves, then as GPT-4o but blind to case and marks. */
#define KIMI_K2                                                                                    \
    "\\p{Han}+|[^\\r\\n\\p{L}\\p{N}\\p{Han}]?\\p{L}+" CONTRACTIONS "?|\\p{N}{1,3}"                 \
    "| ?[^\\s\\p{L}\\p{N}\\p{HanLetter}]+[\\r\\n]*|" BREAKS_OR_SPACES

/* DeepSeek's. */
#define CJK_KANA        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
#define CJK_HANGUL      "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
#define ASCII_MARK_WORD "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
#define MARK_OR_WORD    ASCII_MARK_WORD "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
#define DEEPSEEK3       MARK_OR_WORD "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" BREAKS_OR_SPACES
#define SPARK2_5        MARK_OR_WORD "| ?[\\p{P}\\p{S}]+|[\\r\\n]|" SPACES
/* The letters of alphabets that have case. */
#define DEEPSEEK_LETTERS                                                                           \
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"           \
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"           \
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"               \
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"               \
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57"               \
    "\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"                 \
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"               \
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"                  \
    "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"                 \
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f"                \
    "\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"               \
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"                 \
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"                              \
    "\U0001e900-\U0001e943]+"
/* Published as \s+$, which tries every space of every run. */
#define TRAILING_SPACES "(?<!\\s)\\s++$"

/* Others'. */
#define FALCON_MARKS  "[\\p{P}\\$\\+<=>\\^~\\|`]+"
#define DEFAULT_MARKS "[\\p{P}\\$\\+<=>\\^~\\|]+"
#define THREE_DIGITS  "[0-9][0-9][0-9]"
#define BLOOM         " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
#define LINES         "[^\\n]+|[\\n]+"
#define YOUTU_CJK                                                                                  \
    "[\uac00-\ud7a3\u3131-\u318e]+"                                                                \
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"   \
    "|[\u3105-\u312f]+|" CJK_KANA
/* U+8C48 is what the published U+F900 became when someone normalized it; the ids depend on it. */
#define AFMOE_SCRIPTS                                                                              \
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf" \
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"               \
    "\uac00-\ud7af\u1100-\u11ff]+"

static const pretokenizer rows[] = {
    {"default", 0, {{DEFAULT_MARKS}, {GPT2}, {"\\p{N}+"}, {THREE_DIGITS}}},

    {"llama3", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"llama-v3", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"llama-bpe", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"falcon3", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"falcon-h1", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"pixtral", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"midm-2.0", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"lfm2", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"jina-v5-nano", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"dbrx", 0, {{LLAMA3}}},
    {"smaug-bpe", 0, {{LLAMA3}}},
    {"chatglm-bpe", PRE_NO_BOS, {{LLAMA3}}},
    {"glm4", PRE_NO_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"glm5", PRE_NO_BOS | PRE_WHOLE_WORDS, {{LLAMA3}}},
    {"jais-2", 0, {{LLAMA3}, {.by_hand = splitter_space_powers}}},
    {"minicpm5", PRE_WHOLE_WORDS, {{"\\p{N}{1,3}"}, {MINICPM5}}},

    {"qwen2", 0, {{QWEN2}}},
    {"deepseek-r1-qwen", 0, {{QWEN2}}},
    {"kormo", 0, {{QWEN2}}},
    {"f2llmv2", 0, {{QWEN2}}},
    {"megrez", 0, {{QWEN2}}},
    {"stablelm2", 0, {{QWEN2}}},
    {"hunyuan", 0, {{QWEN2}}},
    {"solar-open", 0, {{QWEN2}}},
    {"grok-2", 0, {{QWEN2}}},
    {"qwen35", 0, {{QWEN35}}},
    {"ufakzeka", 0, {{UFAKZEKA}}},
    {"laguna", 0, {{LINES}, {QWEN2}}},
    {"bailingmoe", 0, {{BAILINGMOE}}},
    {"bailingmoe2", 0, {{BAILINGMOE}}},
    {"llada-moe", 0, {{BAILINGMOE}}},
    {"seed-coder", 0, {{SEED_CODER}}},
    {"exaone-moe", 0, {{EXAONE_MOE}}},

    {"gpt-2", 0, {{GPT2}}},
    {"phi-2", 0, {{GPT2}}},
    {"jina-es", 0, {{GPT2}}},
    {"jina-de", 0, {{GPT2}}},
    {"jina-v1-en", 0, {{GPT2}}},
    {"jina-v2-es", 0, {{GPT2}}},
    {"jina-v2-de", 0, {{GPT2}}},
    {"jina-v2-code", 0, {{GPT2}}},
    {"roberta-bpe", 0, {{GPT2}}},
    {"modern-bert", 0, {{GPT2}}},
    {"gigachat", 0, {{GPT2}}},
    {"a.x-4.0", 0, {{GPT2}}},
    {"mellum", 0, {{GPT2}}},
    {"exaone4", 0, {{GPT2}}},
    {"mpt", 0, {{GPT2}}},
    {"olmo", 0, {{GPT2}}},
    {"jais", 0, {{GPT2}}},
    {"trillion", 0, {{GPT2}}},
    {"granite-docling", 0, {{GPT2}}},

    {"starcoder", 0, {{"\\p{N}"}, {GPT2}}},
    {"refact", 0, {{"\\p{N}"}, {GPT2}}},
    {"command-r", 0, {{"\\p{N}"}, {GPT2}}},
    {"smollm", 0, {{"\\p{N}"}, {GPT2}}},
    {"codeshell", 0, {{"\\p{N}"}, {GPT2}}},
    {"exaone", 0, {{"\\p{N}"}, {GPT2}}},
    {"minerva-7b", 0, {{"\\p{N}"}, {GPT2}}},
    {"mellum2", 0, {{"\\p{N}"}, {GPT2}}},

    {"falcon", 0, {{FALCON_MARKS}, {GPT2}, {THREE_DIGITS}}},
    {"chameleon",
     PRE_ADDS_BOS,
     {{"<sentinel:[0-9]+>"},
      {"(?:IMGIMG)[A-I]{1,4}Z"},
      {"[\\t\\n]|    |  "},
      {"\\p{N}"},
      {"[\\p{P}!-/:-@\\[-`{-~]"},
      {GPT2}}},

    {"deepseek-llm",
     0,
     {{"[\\r\\n]"},
      {DEEPSEEK_LETTERS},
      {"\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"},
      {TRAILING_SPACES},
      {CJK_HANGUL},
      {"\\p{N}+"}}},
    {"deepseek-coder",
     0,
     {{"[\\r\\n]"}, {"\\s?\\p{L}+"}, {"\\s?\\p{P}+"}, {CJK_HANGUL}, {"\\p{N}"}}},
    {"deepseek-v3", 0, {{"\\p{N}{1,3}"}, {CJK_KANA}, {DEEPSEEK3}}},
    {"hunyuan-dense", 0, {{"\\p{N}{1,3}"}, {CJK_KANA}, {DEEPSEEK3}}},
    {"joyai-llm", 0, {{"\\p{N}{1,3}"}, {CJK_KANA}, {DEEPSEEK3}}},
    {"hy_v4", 0, {{"\\p{N}{1,3}"}, {CJK_KANA}, {DEEPSEEK3}}},
    {"spark2_5", 0, {{"\\p{N}{1,3}"}, {CJK_KANA}, {SPARK2_5}, {"\\p{N}"}}},
    {"afmoe", 0, {{.by_hand = splitter_threes_from_right}, {AFMOE_SCRIPTS}, {DEEPSEEK3}}},

    {"tekken", PRE_ADDS_BOS | PRE_WHOLE_WORDS, {{TEKKEN}}},
    {"gpt-4o", 0, {{GPT4O}}},
    {"llama4", 0, {{GPT4O}}},
    {"kanana2", 0, {{GPT4O}}},
    {"talkie", 0, {{GPT4O}}},
    {"minimax-m2", 0, {{GPT4O}}},
    {"granite-embed-multi-97m", PRE_WHOLE_WORDS, {{GRANITE_EMB}}},
    {"tiny_aya", 0, {{.by_hand = splitter_threes_from_right}, {TINY_AYA}}},
    {"cohere2moe", 0, {{.by_hand = splitter_threes_from_right}, {TINY_AYA}}},
    {"youtu", PRE_WHOLE_WORDS, {{YOUTU_CJK}, {YOUTU}}},
    {"kimi-k2", PRE_NEEDS_NO_MERGES, {{KIMI_K2}}},
    {"superbpe", 0, {{"\\p{N}+"}, {.by_hand = splitter_before_threes}}},

    {"poro-chat", 0, {{BLOOM}}},
    {"bloom", 0, {{BLOOM}}},
    {"gpt3-finnish", 0, {{BLOOM}}},
    {"viking", 0, {{BLOOM}, {"\\p{N}"}}},

    /* SentencePiece's habits on a BPE's merges: spaces are escaped, only newlines cut. */
    {"gemma4", PRE_FORCES_BOS | PRE_RAW_UTF8 | PRE_ESCAPES_SPACE | PRE_WHOLE_BREAKS, {{LINES}}},
    {"granite-embed-multi-311m",
     PRE_FORCES_BOS | PRE_RAW_UTF8 | PRE_ESCAPES_SPACE | PRE_WHOLE_BREAKS,
     {{LINES}}},
    {"sarvam-moe", PRE_RAW_UTF8 | PRE_ESCAPES_SPACE, {{LINES}}},
    {"whitespace", PRE_RAW_UTF8 | PRE_KEEPS_CASE, {{"\\S+"}}},
};

const pretokenizer *pretokenizers_at(size_t index)
{
    return index < sizeof rows / sizeof *rows ? &rows[index] : NULL;
}

const pretokenizer *pretokenizers_find(const char *name, size_t size)
{
    if (size == 0)
        return &rows[0];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strlen(rows[i].name) == size && memcmp(rows[i].name, name, size) == 0)
            return &rows[i];
    return NULL;
}
