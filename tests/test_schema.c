/* SPDX-License-Identifier: MIT
 *
 * tests/test_schema.c: texts that are held to a JSON Schema (cli/server/schema.h, grammar.h): what fits, what does not, what is refused;
 * and that whatever the grammar lets through is JSON that fits.
 */
#include "common.h"

#include "schema.h"

static struct cli_grammar grammar_of(const char *schema)
{
    struct cli_grammar g;
    char why[200];
    json_t *v = schema ? json_loads(schema, JSON_DECODE_INT_AS_REAL, NULL) : NULL;
    assert_true(!schema || v);
    if (cli_schema_grammar(v, &g, why, sizeof why))
        fail_msg("%s: %s", schema, why);
    json_decref(v);
    return g;
}

/* Taken whole, and byte by byte. */
static bool fits(const char *schema, const char *text)
{
    struct cli_grammar g = grammar_of(schema);
    struct cli_grammar_state whole, bytes;
    assert_int_equal(cli_grammar_start(&whole, &g), DL_OK);
    assert_int_equal(cli_grammar_start(&bytes, &g), DL_OK);
    bool can = cli_grammar_fits(&whole, text, strlen(text));
    bool ok = cli_grammar_accept(&whole, text, strlen(text)) && cli_grammar_may_end(&whole);
    assert_true(can || !ok);
    bool one = true;
    for (const char *p = text; *p && one; p++) {
        struct cli_byte_set next = cli_grammar_next(&bytes);
        one = cli_byte_in(&next, (unsigned char)*p);
        assert_int_equal(cli_grammar_accept(&bytes, p, 1), one);
    }
    assert_int_equal(ok, one && cli_grammar_may_end(&bytes));
    cli_grammar_state_finish(&whole);
    cli_grammar_state_finish(&bytes);
    cli_grammar_finish(&g);
    return ok;
}

static void test_fits(void **state)
{
    (void)state;
    static const struct {
        const char *schema, *yes[6], *no[12];
    } cases[] = {
        {NULL,
         {"{}", "{\"a\":1}", "{ \"a\": [1, -2.5e+10, \"x\\n\\u00e9\\u1234\", {\"b\": null}], \"c\": true }",
          "{\n  \"a\": {\n    \"b\": []\n  }\n}", "{\"\xc3\xa9\xf0\x9f\x98\x80\":0}"},
         {"", "[]", "1", "{", "{a:1}", "{\"a\":01}", "{\"a\":\"\\x\"}", "{\"a\":\"\\ud800\"}", "{\"a\":\"\\u0000\"}",
          "{\"a\":\"\xc3\"}", "{\"a\":1,}", "{} "}},
        {"{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\"}},"
         "\"required\":[\"name\",\"age\"],\"additionalProperties\":false}",
         {"{\"name\":\"x\",\"age\":5}", "{ \"name\": \"x\" , \"age\": -5 }"},
         {"{}", "{\"name\":\"x\"}", "{\"age\":5,\"name\":\"x\"}", "{\"name\":\"x\",\"age\":5.5}",
          "{\"name\":5,\"age\":5}", "{\"name\":\"x\",\"age\":5,\"b\":1}", "{\"name\":\"x\",\"age\":\"5\"}"}},
        {"{\"properties\":{\"a\":{},\"b\":{\"type\":\"null\"},\"c\":{\"type\":\"boolean\"}},\"required\":[\"b\"]}",
         {"{\"b\":null}", "{\"a\":[],\"b\":null}", "{\"b\":null,\"c\":true}", "{\"a\":1,\"b\":null,\"c\":false}"},
         {"{}", "{\"a\":1}", "{\"c\":true,\"b\":null}", "{\"a\":1,\"c\":true}", "{\"b\":null,}"}},
        {"{\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"integer\"}}}",
         {"{}", "{\"a\":1}", "{\"b\":1}", "{\"a\":1,\"b\":2}"},
         {"{\"b\":1,\"a\":2}", "{,\"a\":1}"}},
        {"{\"type\":\"array\",\"items\":{\"type\":\"number\"},\"minItems\":2,\"maxItems\":3}",
         {"[1,2]", "[1, 2.5, 3]", "[ 0,-0.5 ]"},
         {"[]", "[1]", "[1,2,3,4]", "[1,]", "[\"a\",2]"}},
        {"{\"type\":\"array\",\"items\":{\"type\":\"null\"},\"minItems\":1}",
         {"[null]", "[null,null,null,null]"},
         {"[]"}},
        {"{\"type\":\"array\",\"items\":{\"type\":\"null\"},\"maxItems\":0}", {"[]"}, {"[null]"}},
        {"{\"enum\":[\"red\",\"redder\",3,null,{\"a\":1.5}]}",
         {"\"red\"", "\"redder\"", "3", "null", "{\"a\":1.5}"},
         {"\"re\"", "\"reddest\"", "3.0", "4", "{}"}},
        {"{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\",\"items\":{\"const\":true}}]}",
         {"\"x\"", "[true,true]", "[]"},
         {"true", "[false]"}},
        {"{\"type\":[\"integer\",\"null\"]}", {"0", "null", "-12"}, {"00", "-", "\"a\""}},
        {"{\"$ref\":\"#/$defs/"
         "tree\",\"$defs\":{\"tree\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},"
         "\"kids\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/tree\"}}},\"required\":[\"v\",\"kids\"]}}}",
         {"{\"v\":1,\"kids\":[]}",
          "{\"v\":1,\"kids\":[{\"v\":2,\"kids\":[]},{\"v\":3,\"kids\":[{\"v\":4,\"kids\":[]}]}]}"},
         {"{\"v\":1}", "{\"v\":1,\"kids\":[1]}"}},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        for (size_t k = 0; k < 6 && cases[i].yes[k]; k++)
            if (!fits(cases[i].schema, cases[i].yes[k]))
                fail_msg("%s should fit %s", cases[i].yes[k], cases[i].schema ? cases[i].schema : "any object");
        for (size_t k = 0; k < 12 && cases[i].no[k]; k++)
            if (fits(cases[i].schema, cases[i].no[k]))
                fail_msg("%s should not fit %s", cases[i].no[k], cases[i].schema ? cases[i].schema : "any object");
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *schema, *says;
    } cases[] = {
        {"{\"type\":\"string\",\"pattern\":\"a+\"}", "'pattern' is not supported"},
        {"{\"properties\":{\"a\":{\"type\":\"integer\",\"minimum\":3}}}", "'minimum' is not supported"},
        {"{\"oneOf\":[{}]}", "'oneOf' is not supported"},
        {"{\"type\":\"frob\"}", "'frob' is unknown"},
        {"{\"type\":5}", "a name or a list of names"},
        {"{\"$ref\":\"#/$defs/x\"}", "'#/$defs/x' is not in the schema"},
        {"{\"$ref\":\"http://x\"}", "is not in the schema"},
        {"{\"enum\":[]}", "enum: must be a list"},
        {"{\"enum\":5}", "enum: must be a list"},
        {"{\"allOf\":[{},{}]}", "allOf"},
        {"{\"type\":\"array\",\"minItems\":5,\"maxItems\":2}", "more than maxItems"},
        {"{\"type\":\"array\",\"maxItems\":100000}", "maxItems: must be a whole number up to 1000"},
        {"{\"type\":\"object\",\"required\":[\"a\"],\"additionalProperties\":false}", "'a' is not among"},
        {"{\"additionalProperties\":{\"type\":\"string\"},\"type\":\"object\"}", "additionalProperties"},
        {"{\"properties\":5}", "must be an object"},
        {"{\"properties\":{\"a\":5}}", "a schema must be an object"},
        {"{\"$ref\":\"#\"}", "nothing can fit it"},
        {"{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", "nothing can fit it"},
        {"{\"anyOf\":[{\"$ref\":\"#\"},{\"$ref\":\"#\"},{\"type\":\"null\"}]}", NULL},
    };
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct cli_grammar g;
        char why[200];
        json_t *v = json_loads(cases[i].schema, JSON_DECODE_INT_AS_REAL, NULL);
        assert_non_null(v);
        int err = cli_schema_grammar(v, &g, why, sizeof why);
        if (cases[i].says ? err != DL_EINVAL || !strstr(why, cases[i].says) : err != DL_OK)
            fail_msg("%s: %d, %s", cases[i].schema, err, why);
        cli_grammar_finish(&g);
        json_decref(v);
    }
    /* Schemas within schemas without end. */
    struct dl_str deep = {0};
    for (int i = 0; i < 500; i++)
        (void)dl_str_addz(&deep, "{\"items\":");
    (void)dl_str_addz(&deep, "{}");
    for (int i = 0; i < 500; i++)
        (void)dl_str_addz(&deep, "}");
    struct cli_grammar g;
    char why[200];
    json_t *v = json_loads(deep.v, JSON_DECODE_INT_AS_REAL, NULL);
    assert_int_equal(cli_schema_grammar(v, &g, why, sizeof why), DL_EINVAL);
    assert_non_null(strstr(why, "within each other"));
    cli_grammar_finish(&g);
    json_decref(v);
    dl_str_finish(&deep);
}

/* Random walks: any byte that may come, until the text may end. What comes out parses, and is what the schema says. */
static void test_walks(void **state)
{
    (void)state;
    static const char schema[] = "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"tags\":{"
                                 "\"type\":\"array\",\"items\":{\"enum\":[\"a\",\"b\"]},"
                                 "\"maxItems\":4},\"n\":{\"type\":\"number\"},\"any\":{}},\"required\":[\"name\","
                                 "\"tags\",\"n\"],\"additionalProperties\":false}";
    struct cli_grammar g = grammar_of(schema);
    uint64_t rng = 3;
    unsigned ends = 0, long_ones = 0;
    for (unsigned i = 0; i < 300; i++) {
        struct cli_grammar_state s;
        struct dl_str text = {0};
        assert_int_equal(cli_grammar_start(&s, &g), DL_OK);
        while (!cli_grammar_must_end(&s) && text.len < 3000) {
            struct cli_byte_set next = cli_grammar_next(&s);
            unsigned options = 0, take = 0;
            for (unsigned c = 0; c < 256; c++)
                options += cli_byte_in(&next, (unsigned char)c);
            assert_true(options > 0);
            /* Now and then an end of something, so that texts come to an end. */
            static const char closing[] = "\"]},";
            for (const char *p = closing; *p && !take; p++)
                if (cli_byte_in(&next, (unsigned char)*p) && test_rand(&rng) % 5 == 0)
                    take = (unsigned char)*p;
            unsigned nth = (unsigned)(test_rand(&rng) % options);
            for (unsigned c = 0; c < 256 && !take; c++)
                if (cli_byte_in(&next, (unsigned char)c) && !nth--)
                    take = c;
            char byte = (char)take;
            assert_true(cli_grammar_accept(&s, &byte, 1));
            (void)dl_str_add(&text, &byte, 1);
        }
        if (cli_grammar_must_end(&s)) {
            json_error_t at;
            json_t *v = json_loadb(text.v, text.len, 0, &at);
            if (!v)
                fail_msg("%s: %s", at.text, text.v);
            assert_true(json_is_string(json_object_get(v, "name")) && json_is_number(json_object_get(v, "n")));
            const json_t *tags = json_object_get(v, "tags");
            assert_true(json_is_array(tags) && json_array_size(tags) <= 4);
            for (size_t k = 0; k < json_array_size(tags); k++)
                assert_int_equal(strlen(json_string_value(json_array_get(tags, k))), 1);
            assert_true(json_object_size(v) == 3 || json_object_get(v, "any"));
            json_decref(v);
            ends++;
            long_ones += text.len > 60;
        }
        dl_str_finish(&text);
        cli_grammar_state_finish(&s);
    }
    if (ends < 200 || long_ones < 20)
        fail_msg("%u of 300 came to an end, %u after some length", ends, long_ones);
    cli_grammar_finish(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fits),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_walks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
