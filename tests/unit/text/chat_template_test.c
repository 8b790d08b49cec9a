/* tests/unit/text/chat_template_test.c: what reaches a template. Rendering itself is compared with
 * Jinja2 in tests/golden. */
#include "text/chat_template.h"
#include "unit/text/tiny.h"

static const tiny_token tokens[] = {
    {"<unk>", TOKEN_UNKNOWN, 0}, {"<s>", TOKEN_CONTROL, 0}, {"</s>", TOKEN_CONTROL, 0}};
static const tiny vocabulary = {.model = "llama", .tokens = tokens, .count = 3};

static realm_status render(const char *template, const tokenizer *t, const char *request,
                           buffer *out, realm_error *error)
{
    buffer_init(out, 1 << 16);
    return chat_template_render((gguf_string){template, strlen(template)}, t, request,
                                strlen(request), out, error);
}

static void rendered(const char *template, const tokenizer *t, const char *request,
                     const char *wanted)
{
    buffer out;
    realm_error error;
    assert_status(render(template, t, request, &out, &error), REALM_OK, error);
    assert_string_equal(buffer_text(&out), wanted);
    buffer_release(&out);
}

static void failed(const char *template, const char *request, const char *sentence)
{
    buffer out;
    realm_error error;
    assert_status(render(template, NULL, request, &out, &error), REALM_INVALID, error);
    assert_holds(error.message, sentence);
    buffer_release(&out);
}

static void messages_may_be_a_list_or_inside_an_object(void **state)
{
    const char *template = "{% for m in messages %}[{{ m.role }}:{{ m['content'] }}]{% endfor %}";
    rendered(template, NULL, "[{\"role\":\"user\",\"content\":\"Hi\"}]", "[user:Hi]");
    rendered(template, NULL, "{\"messages\":[{\"role\":\"user\",\"content\":\"\u00e9\"}]}",
             "[user:\u00e9]");
    (void)state;
}

static void bos_and_eos_are_the_models_unless_the_request_has_them(void **state)
{
    tokenizer *t = tiny_must_open(&vocabulary);
    rendered("{{ bos_token }}.{{ eos_token }}", t, "[]", "<s>.</s>");
    rendered("{{ bos_token }}.{{ eos_token }}", t, "{\"messages\":[],\"bos_token\":\"B\"}",
             "B.</s>");
    rendered("{{ bos_token }}.{{ eos_token }}", NULL, "[]", ".");
    tokenizer_close(t);
    (void)state;
}

static void absent_variables_are_as_in_hugging_face(void **state)
{
    rendered("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} "
             "{{ enable_thinking is defined }}",
             NULL, "[]", "True True False False");
    rendered("{{ add_generation_prompt }} {{ enable_thinking }}", NULL,
             "{\"messages\":[],\"add_generation_prompt\":true,\"enable_thinking\":false}",
             "True False");
    (void)state;
}

static void failures_say_why(void **state)
{
    failed("{{ raise_exception('roles must alternate') }}", "[]", "roles must alternate");
    failed("{% if %}", "[]", "line 1");
    failed("x", "3", "not a whole number");
    failed("x", "{\"messages\":3}", "'messages'");
    failed("x", "{\"messages\":", "line 1");
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_may_be_a_list_or_inside_an_object),
        cmocka_unit_test(bos_and_eos_are_the_models_unless_the_request_has_them),
        cmocka_unit_test(absent_variables_are_as_in_hugging_face),
        cmocka_unit_test(failures_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
