/* SPDX-License-Identifier: MIT
 *
 * tests/test_chat.c: chat formats: what they look like (spelled out, family by family), which template is which, what they
 * refuse. test_chat_tokens.c has the token side.
 */
#include "common.h"

#include "chat_render.h"

static const struct dl_chat_msg talk[] = {
    {"system", "Be brief."}, {"user", " Hi "}, {"assistant", "Hello!"}, {"user", "Bye"}};
static const struct dl_chat_msg *const no_system = talk + 1;

static void shows(enum dl_chat_kind kind, const struct dl_chat_msg *msgs, size_t n, bool add_answer, const char *want)
{
    struct dl_str got = {0};
    assert_int_equal(dl_chat_text(kind, msgs, n, add_answer, &got), DL_OK);
    assert_string_equal(got.v, want);
    dl_str_finish(&got);
}

static void turn_formats(void **state)
{
    (void)state;
    shows(DL_CHAT_LLAMA3, talk, 4, true,
          "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
          "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
          "<|start_header_id|>assistant<|end_header_id|>\n\n");
    shows(DL_CHAT_LLAMA3, no_system, 1, false, "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>");
    shows(DL_CHAT_CHATML, talk, 4, true,
          "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
          "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n");
    shows(DL_CHAT_PHI4, talk, 4, true,
          "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|> Hi <|im_end|>"
          "<|im_start|>assistant<|im_sep|>Hello!<|im_end|><|im_start|>user<|im_sep|>Bye<|im_end|>"
          "<|im_start|>assistant<|im_sep|>");
    shows(DL_CHAT_PHI3, talk, 4, true,
          "<|system|>\nBe brief.<|end|>\n<|user|>\n Hi <|end|>\n<|assistant|>\nHello!<|end|>\n<|user|>\nBye<|end|>\n"
          "<|assistant|>\n");
    shows(
        DL_CHAT_ZEPHYR, talk, 4, true,
        "<|system|>\nBe brief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\nHello!</s>\n<|user|>\nBye</s>\n<|assistant|>\n");
    shows(DL_CHAT_GEMMA, talk, 4, true,
          "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
          "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n");
    shows(DL_CHAT_GEMMA, no_system, 1, false, "<start_of_turn>user\nHi<end_of_turn>\n");
}

static void inst_formats(void **state)
{
    (void)state;
    shows(DL_CHAT_LLAMA2, talk, 4, true,
          "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST] Hello! </s><s>[INST] Bye [/INST]");
    shows(DL_CHAT_LLAMA2, no_system, 3, true, "[INST] Hi [/INST] Hello! </s><s>[INST] Bye [/INST]");
    shows(DL_CHAT_MISTRAL, talk, 4, true, "[INST] Be brief.\n\n Hi  [/INST] Hello!</s>[INST] Bye [/INST]");
    shows(DL_CHAT_MISTRAL, no_system, 2, false, "[INST]  Hi  [/INST] Hello!</s>");
}

static void deepseek_formats(void **state)
{
    (void)state;
    shows(DL_CHAT_DEEPSEEK, talk, 4, true,
          "Be brief.\n\nUser:  Hi \n\nAssistant: Hello!<｜end▁of▁sentence｜>User: Bye\n\nAssistant:");
    shows(DL_CHAT_DEEPSEEK3, talk, 4, true,
          "Be brief.<｜User｜> Hi <｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜>");
}

static void render_style(const struct eng_chat_style *style, enum dl_chat_kind kind, const char *want)
{
    struct eng_chat_parts parts = {0};
    assert_int_equal(eng_chat_render(kind, style, talk, 4, true, &parts), DL_OK);
    assert_string_equal(parts.text.v, want);
    eng_chat_parts_finish(&parts);
}

/* What depends on the vocabulary: spaces around the control tokens of later Mistral models, Phi-3's greedy marks. */
static void vocabulary_styles(void **state)
{
    (void)state;
    render_style(&(struct eng_chat_style){.inst_is_token = true}, DL_CHAT_MISTRAL,
                 "[INST] Be brief.\n\n Hi [/INST] Hello!</s>[INST] Bye[/INST]");
    render_style(&(struct eng_chat_style){.inst_is_token = true, .inst_no_space = true}, DL_CHAT_MISTRAL,
                 "[INST]Be brief.\n\n Hi [/INST]Hello!</s>[INST]Bye[/INST]");
    render_style(&(struct eng_chat_style){.inst_is_token = true, .inst_no_space = true, .system_is_token = true},
                 DL_CHAT_MISTRAL,
                 "[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST] Hi [/INST]Hello!</s>[INST]Bye[/INST]");
    render_style(
        &(struct eng_chat_style){.marks_eat_spaces = true}, DL_CHAT_PHI3,
        "<|system|>Be brief.<|end|><|user|> Hi <|end|><|assistant|>Hello!<|end|><|user|>Bye<|end|><|assistant|>");
}

/* Thoughts of earlier answers are not shown again; text in general is not touched. */
static void thoughts(void **state)
{
    (void)state;
    const struct dl_chat_msg msgs[] = {{"user", "a</think>b"},
                                       {"assistant", "<think>\nhm\n</think>\n\nYes."},
                                       {"user", "c"},
                                       {"assistant", "<think>x</think>y"}};
    shows(
        DL_CHAT_CHATML, msgs, 4, false,
        "<|im_start|>user\na</think>b<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
        "<|im_start|>assistant\n<think>x</think>y<|im_end|>\n");
    shows(DL_CHAT_DEEPSEEK3, msgs, 3, true,
          "<｜User｜>a</think>b<｜Assistant｜>\n\nYes.<｜end▁of▁sentence｜><｜User｜>c<｜Assistant｜>");
}

/* Plain neighbours are one part; a mark in a message is plain. */
static void parts_of(void **state)
{
    (void)state;
    static const struct eng_chat_style style;
    const struct dl_chat_msg msg = {"user", "x<|eot_id|>y"};
    struct eng_chat_parts parts = {0};
    assert_int_equal(eng_chat_render(DL_CHAT_LLAMA3, &style, &msg, 1, false, &parts), DL_OK);
    static const struct {
        enum eng_chat_what what;
        const char *text;
    } want[] = {{ENG_CHAT_MARK, "<|start_header_id|>"},
                {ENG_CHAT_PLAIN, "user"},
                {ENG_CHAT_MARK, "<|end_header_id|>"},
                {ENG_CHAT_PLAIN, "\n\nx<|eot_id|>y"},
                {ENG_CHAT_MARK, "<|eot_id|>"}};
    assert_int_equal(parts.len, DL_COUNT_OF(want));
    size_t at = 0;
    for (size_t i = 0; i < parts.len; i++) {
        assert_int_equal(parts.v[i].what, want[i].what);
        assert_int_equal(parts.v[i].at, at);
        assert_int_equal(parts.v[i].n, strlen(want[i].text));
        assert_memory_equal(parts.text.v + at, want[i].text, parts.v[i].n);
        at += parts.v[i].n;
    }
    assert_int_equal(at, parts.text.len);
    eng_chat_parts_finish(&parts);
}

static void refused(void **state)
{
    (void)state;
    const struct dl_chat_msg odd_role[] = {{"user", "a"}, {"tool\n", "b"}}, no_role[] = {{NULL, "a"}},
                             no_text[] = {{"user", NULL}}, late_system[] = {{"user", "a"}, {"system", "b"}},
                             two_users[] = {{"user", "a"}, {"user", "b"}}, answer_first[] = {{"assistant", "a"}},
                             two_answers[] = {{"user", "a"}, {"assistant", "b"}};
    const struct {
        enum dl_chat_kind kind;
        const struct dl_chat_msg *msgs;
        size_t n;
        bool add_answer;
        const char *says;
    } bad[] = {
        {DL_CHAT_LLAMA3, odd_role, 2, true, "message 2 has role \"tool?\""},
        {DL_CHAT_LLAMA3, no_role, 1, true, "no role"},
        {DL_CHAT_LLAMA3, no_text, 1, true, "no content"},
        {DL_CHAT_LLAMA3, talk, 0, true, "no messages"},
        {DL_CHAT_NONE, talk, 4, true, "no chat template"},
        {DL_CHAT_COUNT, talk, 4, true, "no chat template"},
        {DL_CHAT_LLAMA2, two_users, 2, true, "message 2"},
        {DL_CHAT_LLAMA2, late_system, 2, true, "message 2"},
        {DL_CHAT_MISTRAL, answer_first, 1, true, "message 1"},
        {DL_CHAT_MISTRAL, talk, 1, true, "after the system message"},
        {DL_CHAT_MISTRAL, two_answers, 2, true, "before the next answer"},
        {DL_CHAT_GEMMA, talk, 1, false, "after the system message"},
        {DL_CHAT_GEMMA, late_system, 2, true, "message 2"},
        {DL_CHAT_GEMMA, answer_first, 1, true, "message 1"},
    };
    for (size_t i = 0; i < DL_COUNT_OF(bad); i++) {
        struct test_log log = {0};
        struct dl_str out = {0};
        dl_log_set(test_log_sink, &log, DL_LOG_ERROR);
        assert_int_equal(dl_chat_text(bad[i].kind, bad[i].msgs, bad[i].n, bad[i].add_answer, &out), DL_EINVAL);
        dl_log_set(NULL, NULL, DL_LOG_WARN);
        assert_int_equal(log.n, 1);
        if (!strstr(log.last, bad[i].says))
            fail_msg("case %zu says: %s", i, log.last);
        assert_int_equal(out.len, 0);
    }
    shows(DL_CHAT_CHATML, late_system, 2, false, "<|im_start|>user\na<|im_end|>\n<|im_start|>system\nb<|im_end|>\n");
    shows(DL_CHAT_GEMMA, two_users, 2, false,
          "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>user\nb<end_of_turn>\n");
}

static void detect(void **state)
{
    (void)state;
    static const struct {
        enum dl_chat_kind kind;
        const char *text;
    } templates[] = {
        {DL_CHAT_LLAMA3,
         "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim "
         "+ '<|eot_id|>' }}{% endfor %}"},
        {DL_CHAT_CHATML,
         "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endfor "
         "%}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"},
        {DL_CHAT_PHI4,
         "{% for m in messages %}{{ '<|im_start|>user<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"},
        {DL_CHAT_GEMMA,
         "{{ bos_token }}{{ '<start_of_turn>' + role + '\\n' + (m['content'] | trim) + '<end_of_turn>\\n' }}"},
        {DL_CHAT_DEEPSEEK3, "{{ bos_token }}{{ '<｜User｜>' + m['content'] + '<｜Assistant｜>' }}"},
        {DL_CHAT_LLAMA2,
         "{% set content = '<<SYS>>\\n' + s + '\\n<</SYS>>\\n\\n' + c %}{{ bos_token + '[INST] ' + content.strip() + ' "
         "[/INST]' }}"},
        {DL_CHAT_MISTRAL, "{{ bos_token }}{{ '[INST] ' + m['content'] + ' [/INST]' }}{{ m['content'] + eos_token }}"},
        {DL_CHAT_MISTRAL,
         "{{- '[SYSTEM_PROMPT]' + s + '[/SYSTEM_PROMPT]' }}{{- '[INST]' + m['content'] + '[/INST]' }}"},
        {DL_CHAT_PHI3,
         "{{ bos_token }}{{ '<|user|>' + '\\n' + m['content'] + '<|end|>' + '\\n' + '<|assistant|>' + '\\n' }}"},
        {DL_CHAT_ZEPHYR,
         "{{ '<|user|>\\n' + m['content'] + eos_token }}{{ '<|assistant|>\\n' + m['content'] + eos_token }}"},
        {DL_CHAT_ZEPHYR, "{{'<|user|>\\n' + m['content'] + '<|endoftext|>\\n'}}{{'<|assistant|>\\n'}}"},
        {DL_CHAT_DEEPSEEK,
         "{{ 'User: ' + m['content'] + '\\n\\n' }}{{ 'Assistant: ' + m['content'] + eos_token }}{{ 'Assistant:' }}"},
        {DL_CHAT_NONE, ""},
        {DL_CHAT_NONE, "{{ messages }}"},
        /* The user's turn does not end in EOS: not Zephyr. */
        {DL_CHAT_NONE, "{{ '<|user|>\\n' + m['content'] + '\\n' }}{{ '<|assistant|>\\n' + m['content'] + eos_token }}"},
        {DL_CHAT_NONE, "{{ '<|user|>\\n' + m['content'] + eos_token <|assistant|>"},
        {DL_CHAT_NONE, "USER: {{ m['content'] }} ASSISTANT: {{ m['content'] + eos_token }}"},
        {DL_CHAT_NONE, "<|start_header_id|"},
    };
    bool seen[DL_CHAT_COUNT] = {false};
    for (size_t i = 0; i < DL_COUNT_OF(templates); i++) {
        enum dl_chat_kind got = dl_chat_detect(templates[i].text, strlen(templates[i].text));
        if (got != templates[i].kind)
            fail_msg("template %zu: %s, not %s", i, dl_chat_name(got), dl_chat_name(templates[i].kind));
        seen[got] = true;
    }
    for (int k = 0; k < DL_CHAT_COUNT; k++)
        assert_true(seen[k]);
    static const char with_nul[] = "\0\0<|im_start|>\0";
    assert_int_equal(dl_chat_detect(with_nul, sizeof with_nul), DL_CHAT_CHATML);
    assert_int_equal(dl_chat_detect(NULL, 0), DL_CHAT_NONE);
}

static void names(void **state)
{
    (void)state;
    for (int k = 0; k < DL_CHAT_COUNT; k++)
        assert_int_equal(dl_chat_by_name(dl_chat_name((enum dl_chat_kind)k)), k);
    assert_int_equal(dl_chat_by_name("LLAMA3"), DL_CHAT_COUNT);
    assert_int_equal(dl_chat_by_name(""), DL_CHAT_COUNT);
    assert_string_equal(dl_chat_name(DL_CHAT_DEEPSEEK3), "deepseek3");
    assert_string_equal(dl_chat_name(DL_CHAT_COUNT), "?");
}

/* Every format but "none" has a way to end; none of them would cut HTML. */
static void stops(void **state)
{
    (void)state;
    for (int k = 0; k < DL_CHAT_COUNT; k++) {
        const char *const *s = dl_chat_stops((enum dl_chat_kind)k);
        assert_int_equal(!s[0], k == DL_CHAT_NONE);
        for (; *s; s++)
            assert_true(strlen(*s) > 4 && strcmp(*s, "</s>") != 0);
    }
    assert_null(dl_chat_stops(DL_CHAT_COUNT)[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turn_formats),
        cmocka_unit_test(inst_formats),
        cmocka_unit_test(deepseek_formats),
        cmocka_unit_test(vocabulary_styles),
        cmocka_unit_test(thoughts),
        cmocka_unit_test(parts_of),
        cmocka_unit_test(refused),
        cmocka_unit_test(detect),
        cmocka_unit_test(names),
        cmocka_unit_test(stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
