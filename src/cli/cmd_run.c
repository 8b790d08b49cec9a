/* cli/cmd_run.c: `realm run`: one tenant, one model, one program, text on standard output.
 *
 * Everything goes through librealm and a sandbox: without --program the built-in `completion` or,
 * with --chat, `chat` answers. The flags become the request that the program reads; what it streams
 * is printed as it comes (as JSON at the end with --json). Main thread; text arrives on a sandbox
 * thread, which writes to standard output while the main thread waits. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/utf8.h"
#include "cli/commands.h"
#include "cli/model_options.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/terminal.h"
#include "formats/json.h"
#include "model/placement.h"
#include "realm/realm.h"

#define MAX_PROGRAM_BYTES ((size_t)64 << 20)
#define MAX_PROMPT_BYTES  ((size_t)16 << 20)
#define MAX_TEXT_BYTES    ((size_t)64 << 20)

/* What the command line said. Numbers outside their range mean that they were not given. */
typedef struct run_options {
    const char *model, *device, *program, *prompt, *system, *stop, *response_format, *cache_folder,
        *gpu_layers;
    int chat, json, ignore_eos, no_weight_cache, map_weights;
    int64_t max_tokens, top_k, seed, logprobs, n_threads, penalty_tokens, timeout_s, memory_mb,
        kv_bytes;
    double temperature, top_p, min_p, typical_p, repetition, frequency, presence;
} run_options;

typedef struct run {
    run_options options;
    arena memory;
    realm_runtime *runtime;
    realm_program *program;
    realm_tenant *tenant;
    buffer text; /* all that the program streamed; on the sandbox thread until the call has ended */
    int is_terminal;
    double load_ms;
} run;

static volatile sig_atomic_t g_interrupted;

static void on_interrupt(int number)
{
    (void)number;
    g_interrupted = 1;
}

/* A JSON string of any bytes: what is not UTF-8 becomes U+FFFD, since JSON cannot carry it. */
static json_t *clean_text(const char *text, size_t size)
{
    buffer clean;
    buffer_init(&clean, MAX_TEXT_BYTES * 3);
    realm_status status = REALM_OK;
    for (size_t i = 0; i < size && !status;) {
        uint32_t code;
        uint8_t bytes[4];
        i += (size_t)utf8_decode((const uint8_t *)text + i, size - i, &code);
        status = buffer_add(&clean, bytes, (size_t)utf8_encode(code, bytes));
    }
    json_t *string = status ? NULL : json_stringn(buffer_text(&clean), clean.size);
    buffer_release(&clean);
    return string;
}

/* ---- the request --------------------------------------------------------------------------------- */

static void add_real(json_t *request, const char *key, double value)
{
    if (!isnan(value))
        json_object_set_new(request, key, json_real(value));
}

static void add_int(json_t *request, const char *key, int64_t value, int64_t unset)
{
    if (value != unset)
        json_object_set_new(request, key, json_integer(value));
}

/* The request as docs/HOST_ABI.md's built-in programs read it. messages is borrowed, or NULL. */
static json_t *make_request(const run_options *o, const char *prompt, size_t prompt_size,
                            json_t *messages, int64_t seed)
{
    json_t *request = json_object();
    json_object_set_new(request, "prompt", clean_text(prompt, prompt_size));
    if (messages)
        json_object_set(request, "messages", messages);
    json_object_set_new(request, "max_tokens", json_integer(o->max_tokens));
    add_real(request, "temperature", o->temperature);
    add_int(request, "top_k", o->top_k, -1);
    add_real(request, "top_p", o->top_p);
    add_real(request, "min_p", o->min_p);
    add_real(request, "typical_p", o->typical_p);
    add_real(request, "repetition_penalty", o->repetition);
    add_real(request, "frequency_penalty", o->frequency);
    add_real(request, "presence_penalty", o->presence);
    add_int(request, "penalty_tokens", o->penalty_tokens, -2);
    add_int(request, "seed", seed, -1);
    if (o->json || o->logprobs >= 0)
        json_object_set_new(request, "logprobs", json_integer(o->logprobs > 0 ? o->logprobs : 0));
    if (o->stop)
        json_object_set_new(request, "stop", json_string(o->stop));
    if (o->ignore_eos)
        json_object_set_new(request, "ignore_eos", json_true());
    return request;
}

static realm_status add_format(json_t *request, const char *schema, realm_error *error)
{
    if (!schema)
        return REALM_OK;
    if (strcmp(schema, "json") == 0) {
        json_object_set_new(request, "response_format", json_pack("{s:s}", "type", "json_object"));
        return REALM_OK;
    }
    json_t *parsed;
    realm_status status = json_parse(&parsed, schema, strlen(schema), MAX_PROMPT_BYTES,
                                     JSON_USUAL_DEPTH, error);
    if (status)
        return realm_fail_in(error, status, "--schema");
    json_object_set_new(
        request, "response_format",
        json_pack("{s:s,s:{s:o}}", "type", "json_schema", "json_schema", "schema", parsed));
    return REALM_OK;
}

/* ---- what comes back ----------------------------------------------------------------------------- */

static void print_text(void *context, const char *text, size_t size)
{
    run *r = context;
    if (buffer_add(&r->text, text, size))
        return; /* past 64 MiB: the sandbox's own limit on output is lower */
    if (r->options.json)
        return;
    if (r->is_terminal)
        terminal_print_stream(stdout, text, size);
    else
        fwrite(text, 1, size, stdout);
    fflush(stdout);
}

/* What a program of the user's own answered, in the shape that the built-in ones have. */
static json_t *plain_answer(run *r, const realm_call_result *result)
{
    json_t *answer = json_pack("{s:[],s:[],s:o,s:s}", "prompt_tokens", "tokens", "text",
                               clean_text(buffer_text(&r->text), r->text.size), "finish_reason",
                               "stop");
    if (result->json) {
        json_t *own = json_loadb(result->json, result->json_size, JSON_DECODE_ANY | JSON_ALLOW_NUL,
                                 NULL);
        if (own)
            json_object_set_new(answer, "response", own);
    }
    return answer;
}

/* Clocks tell no more. */
static json_t *thousandths(double value)
{
    return json_real(round(value * 1000) / 1000);
}

static void add_timings(run *r, json_t *answer, const realm_call_result *result)
{
    json_t *timings = json_object_get(answer, "timings");
    if (!json_is_object(timings)) {
        timings = json_object();
        json_object_set_new(answer, "timings", timings);
    }
    json_object_set_new(timings, "load_ms", thousandths(r->load_ms));
    json_object_set_new(timings, "wall_ms", thousandths((double)result->wall_ns / 1e6));
    json_object_set_new(timings, "sandbox_start_us", thousandths((double)result->start_ns / 1e3));
    json_object_set_new(timings, "sandbox_cpu_ms", thousandths((double)result->cpu_ns / 1e6));
}

static void print_answer(run *r, const realm_call_result *result)
{
    json_t *answer = NULL;
    if (result->json)
        answer = json_loadb(result->json, result->json_size, JSON_ALLOW_NUL, NULL);
    if (!json_is_array(json_object_get(answer, "prompt_tokens"))) {
        json_decref(answer);
        answer = plain_answer(r, result);
    }
    add_timings(r, answer, result);
    char *text = json_dumps(answer, JSON_COMPACT | JSON_REAL_PRECISION(9));
    if (text)
        puts(text);
    fflush(stdout);
    free(text);
    json_decref(answer);
}

static void print_failure(const realm_error *error)
{
    json_t *answer = json_pack("{s:{s:s,s:s}}", "error", "message", error->message, "code",
                               realm_status_name(error->status));
    char *text = json_dumps(answer, JSON_COMPACT);
    if (text)
        puts(text);
    free(text);
    json_decref(answer);
}

/* ---- calls --------------------------------------------------------------------------------------- */

/* One request from start to end; its failure is told. Returns the exit code. */
static int call(run *r, json_t *request, uint64_t seed)
{
    realm_error error = {0};
    char *input = json_dumps(request, JSON_COMPACT);
    if (!input) {
        realm_fail_memory(&error, 1, "the request");
        return command_failed("run", &error);
    }
    realm_call_options options = {.tenant = r->tenant,
                                  .program = r->program,
                                  .input = input,
                                  .input_size = strlen(input),
                                  .seed = seed,
                                  .on_text = print_text,
                                  .context = r};
    realm_call *c = NULL;
    buffer_clear(&r->text);
    realm_status status = realm_call_start(&c, r->runtime, &options, &error);
    free(input);
    if (status)
        return command_failed("run", &error);
    const realm_call_result *result;
    while (!(result = realm_call_poll(c, 50)))
        if (g_interrupted)
            realm_call_cancel(c);
    int code = EXIT_OK;
    if (!r->options.json && r->text.size)
        putchar('\n');
    if (result->status) {
        fflush(stdout);
        realm_fail(&error, result->status, "%s", result->message);
        code = g_interrupted ? 130 : command_failed("run", &error);
        if (r->options.json)
            print_failure(&error);
    } else if (r->options.json) {
        print_answer(r, result);
    }
    realm_call_close(c);
    return code;
}

static json_t *message(const char *role, const char *text, size_t size)
{
    return json_pack("{s:s,s:o}", "role", role, "content", clean_text(text, size));
}

static uint64_t choose_seed(const run_options *o)
{
    uint64_t seed = (uint64_t)o->seed;
    if (o->seed < 0 && getentropy(&seed, sizeof seed) != 0)
        seed = clock_ns();
    return seed & INT64_MAX;
}

/* One prompt, one answer. */
static int answer_prompt(run *r, const char *prompt, size_t size, json_t *messages)
{
    realm_error error = {0};
    uint64_t seed = choose_seed(&r->options);
    json_t *request = make_request(&r->options, prompt, size, messages, (int64_t)seed);
    int code = add_format(request, r->options.response_format, &error)
                   ? command_failed("run", &error)
                   : call(r, request, seed);
    json_decref(request);
    return code;
}

/* A conversation: each line of standard input is what the user says next. */
static int converse(run *r, json_t *messages)
{
    int asks = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
    char *line = NULL;
    size_t room = 0;
    int code = EXIT_OK;
    for (;;) {
        if (asks)
            fprintf(stderr, "%s> %s", terminal_style_text(stderr, STYLE_GREEN),
                    terminal_style_text(stderr, STYLE_PLAIN));
        ssize_t size = getline(&line, &room, stdin);
        if (size < 0 || g_interrupted)
            break;
        while (size && (line[size - 1] == '\n' || line[size - 1] == '\r'))
            size--;
        if (!size)
            continue;
        json_array_append_new(messages, message("user", line, (size_t)size));
        code = answer_prompt(r, line, (size_t)size, messages);
        if (code)
            break;
        json_array_append_new(messages, message("assistant", buffer_text(&r->text), r->text.size));
    }
    if (asks)
        fputc('\n', stderr);
    free(line);
    return g_interrupted ? 130 : code;
}

/* ---- setting up ---------------------------------------------------------------------------------- */

static realm_status open_program(run *r, realm_error *error)
{
    if (!r->options.program)
        return realm_program_builtin(&r->program, r->runtime,
                                     r->options.chat ? "chat" : "completion", error);
    char *bytes;
    size_t size;
    realm_status status = file_read(&r->memory, r->options.program, MAX_PROGRAM_BYTES, &bytes,
                                    &size, error);
    if (status)
        return status;
    return realm_program_open(&r->program, r->runtime, r->options.program, bytes, size, error);
}

static realm_status set_up(run *r, realm_error *error)
{
    static const char *const everything[] = {"models",  "adapters", "logits",
                                             "tensors", "state",    "calls"};
    realm_runtime_options runtime = {.device = r->options.device,
                                     .n_threads = (int32_t)r->options.n_threads,
                                     .n_sandboxes = 1, /* one request after the other */
                                     .kv_bytes = (uint64_t)r->options.kv_bytes,
                                     .cache_folder = r->options.cache_folder,
                                     .no_weight_cache = r->options.no_weight_cache,
                                     .map_weights = r->options.map_weights};
    realm_tenant_options tenant = {
        .name = "local",
        .capabilities = everything,
        .n_capabilities = sizeof everything / sizeof *everything,
        .memory_bytes = (uint64_t)r->options.memory_mb << 20,
        .wall_ms = (uint64_t)r->options.timeout_s * 1000,
    };
    realm_status status = placement_parse_layers(r->options.gpu_layers, &runtime.gpu_layers, error);
    if (!status)
        status = realm_runtime_open(&r->runtime, &runtime, error);
    if (!status) /* first, so that a broken program is told before the model is read */
        status = open_program(r, error);
    if (status)
        return status;
    progress bar;
    progress_begin(&bar, "loading the model");
    uint64_t start = clock_ns();
    status = realm_runtime_load(r->runtime, NULL, r->options.model, progress_step, &bar, error);
    progress_end(&bar);
    r->load_ms = (double)(clock_ns() - start) / 1e6;
    if (status)
        return status;
    return realm_tenant_open(&r->tenant, r->runtime, &tenant, error);
}

static int run_all(run *r, const options_command *command)
{
    realm_error error = {0};
    const char *prompt = r->options.prompt;
    char *read = NULL;
    size_t size = prompt ? strlen(prompt) : 0;
    if (!prompt && !r->options.chat) {
        if (isatty(STDIN_FILENO))
            return options_wrong(command, "there is no prompt: give --prompt TEXT or --chat");
        if (file_read(&r->memory, "-", MAX_PROMPT_BYTES, &read, &size, &error)) {
            realm_fail_in(&error, error.status, "the prompt on standard input");
            return command_failed("run", &error);
        }
        prompt = read;
    }
    if (set_up(r, &error))
        return command_failed("run", &error);

    /* Until here an interrupt just ends us: there is nothing to tidy, and a large model loads for long. From
     * here the first one ends the request, and a second one us. */
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    json_t *messages = r->options.chat ? json_array() : NULL;
    if (messages && r->options.system)
        json_array_append_new(messages,
                              message("system", r->options.system, strlen(r->options.system)));
    int code;
    if (prompt) {
        if (messages)
            json_array_append_new(messages, message("user", prompt, size));
        code = answer_prompt(r, prompt, size, messages);
    } else {
        code = converse(r, messages);
    }
    json_decref(messages);
    return code;
}

int cmd_run(int argc, char **argv)
{
    run r = {.options = {.max_tokens = 256,
                         .top_k = -1,
                         .seed = -1,
                         .logprobs = -1,
                         .penalty_tokens = -2,
                         .temperature = NAN,
                         .top_p = NAN,
                         .min_p = NAN,
                         .typical_p = NAN,
                         .repetition = NAN,
                         .frequency = NAN,
                         .presence = NAN}};
    run_options *o = &r.options;
    const option options[] = {
        {.name = "model",
         .letter = 'm',
         .kind = OPTION_TEXT,
         .out = &o->model,
         .value = "FILE",
         .required = 1,
         .help = "the GGUF file of the model"},
        {.name = "program",
         .kind = OPTION_TEXT,
         .out = &o->program,
         .value = "P.wasm",
         .help = "the program that answers, WebAssembly binary or text (default: a built-in one)"},
        {.name = "prompt",
         .letter = 'p',
         .kind = OPTION_TEXT,
         .out = &o->prompt,
         .value = "TEXT",
         .help = "what to go on from; without it, standard input is read"},
        {.name = "chat",
         .kind = OPTION_FLAG,
         .out = &o->chat,
         .help =
             "talk through the model's chat template: --prompt is one question, without it each line of "
             "standard input is one"},
        {.name = "system",
         .kind = OPTION_TEXT,
         .out = &o->system,
         .value = "TEXT",
         .help = "with --chat: the system message"},
        {.name = "max-tokens",
         .letter = 'n',
         .kind = OPTION_INT,
         .out = &o->max_tokens,
         .value = "N",
         .min = 1,
         .max = 1 << 20,
         .help = "stop after N tokens"},
        {.name = "temperature",
         .kind = OPTION_REAL,
         .out = &o->temperature,
         .value = "T",
         .min = 0,
         .max = 100,
         .help = "0, the default, always takes the likeliest token"},
        {.name = "top-k",
         .kind = OPTION_INT,
         .out = &o->top_k,
         .value = "K",
         .min = 0,
         .max = 1 << 30,
         .help = "choose among the K likeliest (0: all)"},
        {.name = "top-p",
         .kind = OPTION_REAL,
         .out = &o->top_p,
         .value = "P",
         .min = 0,
         .max = 1,
         .help = "choose among the likeliest that hold P of the probability"},
        {.name = "min-p",
         .kind = OPTION_REAL,
         .out = &o->min_p,
         .value = "P",
         .min = 0,
         .max = 1,
         .help = "drop what is less likely than P times the likeliest"},
        {.name = "typical-p",
         .kind = OPTION_REAL,
         .out = &o->typical_p,
         .value = "P",
         .min = 0,
         .max = 1,
         .help = "choose among the most typical that hold P of the probability"},
        {.name = "repetition-penalty",
         .kind = OPTION_REAL,
         .out = &o->repetition,
         .value = "X",
         .min = 0.01,
         .max = 100,
         .help = "over 1: makes tokens that occurred less likely"},
        {.name = "frequency-penalty",
         .kind = OPTION_REAL,
         .out = &o->frequency,
         .value = "X",
         .min = -100,
         .max = 100,
         .help = "taken from a token's logit for each time it occurred"},
        {.name = "presence-penalty",
         .kind = OPTION_REAL,
         .out = &o->presence,
         .value = "X",
         .min = -100,
         .max = 100,
         .help = "taken once from the logit of a token that occurred"},
        {.name = "penalty-tokens",
         .kind = OPTION_INT,
         .out = &o->penalty_tokens,
         .value = "N",
         .min = -1,
         .max = 1 << 30,
         .help = "how many recent tokens penalties look at (-1: all)"},
        {.name = "seed",
         .kind = OPTION_INT,
         .out = &o->seed,
         .value = "S",
         .min = 0,
         .max = 0x1p62,
         .help = "the same seed gives the same text; without it each run draws anew"},
        {.name = "stop",
         .kind = OPTION_TEXT,
         .out = &o->stop,
         .value = "TEXT",
         .help = "stop before this text"},
        {.name = "schema",
         .kind = OPTION_TEXT,
         .out = &o->response_format,
         .value = "JSON",
         .help = "only text of this JSON schema; \"json\" for any JSON object"},
        {.name = "ignore-eos",
         .kind = OPTION_FLAG,
         .out = &o->ignore_eos,
         .help = "go on where the model would end"},
        {.name = "logprobs",
         .kind = OPTION_INT,
         .out = &o->logprobs,
         .value = "K",
         .min = 0,
         .max = 20,
         .help =
             "with --json: the K likeliest tokens at each place, with their log-probabilities in the "
             "untempered model"},
        {.name = "json",
         .kind = OPTION_FLAG,
         .out = &o->json,
         .help = "print one JSON object an answer instead of text"},
        MODEL_OPTIONS(o),
        {.name = "timeout",
         .kind = OPTION_INT,
         .out = &o->timeout_s,
         .value = "S",
         .min = 1,
         .max = 1e6,
         .help = "end the request after S seconds (default: 600)"},
        {.name = "memory",
         .kind = OPTION_INT,
         .out = &o->memory_mb,
         .value = "MIB",
         .min = 1,
         .max = 1 << 20,
         .help = "memory that the program may use (default: 64; 64-bit programs: 16384)"},
        {0}};
    const options_command command = {
        .name = "run",
        .summary = "generate text with a model, through a program in its sandbox",
        .options = options,
        .notes =
            "Examples\n"
            "  realm run --model model.gguf --prompt \"The capital of France is\" --max-tokens 16\n"
            "  realm run --model model.gguf --chat --prompt \"What is the capital of France?\"\n"
            "  realm run --model model.gguf --program mine.wasm --prompt hello --json\n",
    };
    int code = options_parse(&command, argc, argv);
    if (code != OPTIONS_GO_ON)
        return code;

    arena_init(&r.memory, 0);
    buffer_init(&r.text, MAX_TEXT_BYTES);
    r.is_terminal = isatty(STDOUT_FILENO);
    code = run_all(&r, &command);
    realm_tenant_close(r.tenant);
    realm_program_close(r.program);
    realm_runtime_close(r.runtime);
    buffer_release(&r.text);
    arena_release(&r.memory);
    return code;
}
