/* tests/tools/logits_tool.c: prints what a model makes of given tokens.
 *
 *     logits_tool MODEL.gguf [--adapter A.gguf] [--device D] [--reference] [--exact] [--threads N] [--chunk N]
 *                 [--context N] < questions
 *
 * Questions are lines of numbers:
 *     tokens ID...     a new sequence; the lines below it ask about it
 *     ask POSITION ID...   log-probabilities of those ids as the token after POSITION
 *     top POSITION K       the K most probable ids, "ID:LOGPROB" each
 *     logits POSITION      all raw logits
 * and each of the last three is answered by one line, in order. Log-probabilities are of the
 * untempered model. For golden tests and for measuring; it links the rooms below the engine only,
 * so that what it shows is the model's and not the engine's. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compute/backend_open.h"
#include "model/adapter.h"
#include "support/model_run.h"

typedef struct settings {
    const char *model, *adapter, *device;
    backend_cpu_options cpu;
    int32_t chunk, context;
} settings;

typedef struct session {
    model_run run;
    adapter *adapter;
    int32_t n_vocab, chunk;
    token_id *tokens;
    int32_t n_tokens;
    float *logits;  /* [n_tokens, n_vocab] */
    double *shares; /* [n_vocab] log-probabilities of one position */
} session;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "logits_tool: %s: %s\n", what, why);
    exit(1);
}

static int32_t number(const char *text)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 0 || value > INT32_MAX)
        die(text, "not a number");
    return (int32_t)value;
}

static settings parse(int argc, char **argv)
{
    settings s = {.chunk = 512, .context = 1024};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--reference") == 0) {
            s.cpu.reference = 1;
        } else if (strcmp(argv[i], "--exact") == 0) {
            s.cpu.exact = 1;
        } else if (argv[i][0] != '-') {
            s.model = argv[i];
        } else if (value == NULL) {
            die(argv[i], "needs a value");
        } else {
            if (strcmp(argv[i], "--adapter") == 0)
                s.adapter = value;
            else if (strcmp(argv[i], "--device") == 0)
                s.device = value;
            else if (strcmp(argv[i], "--threads") == 0)
                s.cpu.n_threads = number(value);
            else if (strcmp(argv[i], "--chunk") == 0)
                s.chunk = number(value);
            else if (strcmp(argv[i], "--context") == 0)
                s.context = number(value);
            else
                die(argv[i], "unknown option");
            i++;
        }
    }
    if (s.model == NULL || s.chunk < 1 || s.chunk > 512)
        die("usage", "logits_tool MODEL.gguf [options], --chunk from 1 to 512");
    if (s.device && (s.cpu.reference || s.cpu.exact || s.cpu.n_threads))
        die("--device", "goes with neither --reference, --exact nor --threads");
    return s;
}

static void set_tokens(session *s, char *rest)
{
    s->n_tokens = 0;
    for (char *word; (word = strtok_r(NULL, " \n", &rest)) != NULL;) {
        if (s->n_tokens >= s->run.context)
            die("tokens", "more than --context");
        token_id id = number(word);
        if (id >= s->n_vocab)
            die(word, "not in the vocabulary");
        s->tokens[s->n_tokens++] = id;
    }
    if (s->n_tokens == 0)
        die("tokens", "none given");
    free(s->logits);
    s->logits = calloc((size_t)s->n_tokens * (size_t)s->n_vocab, sizeof *s->logits);
    if (s->logits == NULL)
        die("tokens", "out of memory");
    model_run_prompt(&s->run, s->tokens, s->n_tokens, s->chunk, s->adapter, s->logits);
}

/* The logits after the position that the line names. */
static const float *at_position(const session *s, char **rest)
{
    const char *word = strtok_r(NULL, " \n", rest);
    int32_t position = number(word == NULL ? "" : word);
    if (position >= s->n_tokens)
        die(word, "past the end of the tokens");
    return s->logits + (size_t)position * (size_t)s->n_vocab;
}

static void normalize(session *s, const float *logits)
{
    double most = -INFINITY, sum = 0;
    for (int32_t i = 0; i < s->n_vocab; i++)
        most = fmax(most, (double)logits[i]);
    for (int32_t i = 0; i < s->n_vocab; i++)
        sum += exp((double)logits[i] - most);
    for (int32_t i = 0; i < s->n_vocab; i++)
        s->shares[i] = (double)logits[i] - most - log(sum);
}

static void answer_ask(session *s, char *rest)
{
    normalize(s, at_position(s, &rest));
    const char *gap = "";
    for (char *word; (word = strtok_r(NULL, " \n", &rest)) != NULL; gap = " ") {
        int32_t id = number(word);
        if (id >= s->n_vocab)
            die(word, "not in the vocabulary");
        printf("%s%.7f", gap, s->shares[id]);
    }
    printf("\n");
}

/* Picks the largest K times: K is small. Of equals the smaller id comes first. */
static void answer_top(session *s, char *rest)
{
    normalize(s, at_position(s, &rest));
    const char *word = strtok_r(NULL, " \n", &rest);
    int32_t k = number(word == NULL ? "" : word);
    for (int32_t j = 0; j < k && j < s->n_vocab; j++) {
        int32_t best = 0;
        for (int32_t i = 1; i < s->n_vocab; i++)
            if (s->shares[i] > s->shares[best])
                best = i;
        printf("%s%d:%.7f", j == 0 ? "" : " ", best, s->shares[best]);
        s->shares[best] = -INFINITY;
    }
    printf("\n");
}

static void answer_logits(const session *s, char *rest)
{
    const float *logits = at_position(s, &rest);
    for (int32_t i = 0; i < s->n_vocab; i++)
        printf("%s%.9g", i == 0 ? "" : " ", (double)logits[i]);
    printf("\n");
}

static void answer_all(session *s, FILE *questions)
{
    char *line = NULL;
    size_t capacity = 0;
    while (getline(&line, &capacity, questions) > 0) {
        char *rest;
        const char *verb = strtok_r(line, " \n", &rest);
        if (verb == NULL)
            continue;
        if (strcmp(verb, "tokens") == 0)
            set_tokens(s, rest);
        else if (strcmp(verb, "ask") == 0)
            answer_ask(s, rest);
        else if (strcmp(verb, "top") == 0)
            answer_top(s, rest);
        else if (strcmp(verb, "logits") == 0)
            answer_logits(s, rest);
        else
            die(verb, "unknown question");
        fflush(stdout);
    }
    free(line);
}

/* The processor's kernels are what the golden files hold; another device is asked for by name. */
static realm_status open_backend(backend **b, const settings *s, realm_error *error)
{
    if (s->device == NULL)
        return backend_cpu_open(b, &s->cpu, error);
    return backend_open(b, &(backend_options){.device = s->device}, error);
}

int main(int argc, char **argv)
{
    settings wanted = parse(argc, argv);
    realm_error error = {0};
    backend *b = NULL;
    model *m = NULL;
    const model_options options = {.max_batch_tokens = wanted.chunk,
                                   .max_batch_outputs = wanted.chunk,
                                   .context_tokens = wanted.context};
    if (open_backend(&b, &wanted, &error) != REALM_OK ||
        model_open(&m, b, wanted.model, &options, &error) != REALM_OK)
        die(wanted.model, error.message);
    session s = {.n_vocab = model_hyperparameters(m)->n_vocab, .chunk = wanted.chunk};
    if (wanted.adapter != NULL && adapter_open(&s.adapter, m, wanted.adapter, &error) != REALM_OK)
        die(wanted.adapter, error.message);
    model_run_open(&s.run, m, wanted.context);
    s.tokens = calloc((size_t)s.run.context, sizeof *s.tokens);
    s.shares = calloc((size_t)s.n_vocab, sizeof *s.shares);
    if (s.tokens == NULL || s.shares == NULL)
        die("start", "out of memory");
    answer_all(&s, stdin);
    free(s.tokens);
    free(s.shares);
    free(s.logits);
    model_run_close(&s.run);
    adapter_close(s.adapter);
    model_close(m);
    b->table->close(b);
    return 0;
}
