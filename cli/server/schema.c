/* SPDX-License-Identifier: MIT
 *
 * cli/server/schema.c: see schema.h. White space between the parts of a text is at most one space, or a line end with an indentation;
 * numbers are of bounded length and strings of whole characters: so every text comes to an end, and every parser takes it.
 */
#include "schema.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define INDENT 32u
#define DIGITS 15u
#define MOST_LITERALS 1000u
#define MOST_DEPTH 64u /* of schemas within schemas */

struct compiler {
    struct cli_grammar *g;
    const json_t *root;
    char *why;
    size_t n_why;
    int err;
    uint32_t space, string, number, integer, value, object, array; /* 0: not made so far (rule 0 is the whole) */
    struct {
        const json_t *schema;
        uint32_t rule;
    } refs[64]; /* what $ref has led to */
    uint32_t n_refs, depth;
};

DL_PRINTF(2, 3) static uint32_t refuse(struct compiler *c, const char *fmt, ...)
{
    va_list ap;
    if (c->err)
        return 0;
    c->err = DL_EINVAL;
    va_start(ap, fmt);
    vsnprintf(c->why, c->n_why, fmt, ap);
    va_end(ap);
    return 0;
}

/* ------------------------------------------------------------------------------------------- the parts of JSON */

/* A rule of one sequence, from a pattern: "..." text is itself, [..] a class, and %r the next rule of the arguments. */
static void sequence(struct cli_grammar *g, uint32_t rule, const char *pattern, const uint32_t *rules)
{
    cli_grammar_begin(g, rule);
    for (; *pattern; pattern++) {
        if (*pattern == '%') {
            cli_grammar_ref(g, *rules++);
        } else if (*pattern == '[' && pattern[1]) {
            char ranges[64];
            size_t n = strcspn(pattern + 1, "]");
            memcpy(ranges, pattern + 1, n);
            ranges[n] = 0;
            cli_grammar_class(g, ranges);
            pattern += n + 1;
        } else {
            cli_grammar_text(g, pattern, 1);
        }
    }
    cli_grammar_end(g);
}
#define SEQUENCE(g, rule, pattern, ...) sequence(g, rule, pattern, (const uint32_t[]){__VA_ARGS__})

/* Up to n of a class. */
static uint32_t up_to(struct cli_grammar *g, const char *class, uint32_t n)
{
    uint32_t rest = cli_grammar_rule(g);
    SEQUENCE(g, rest, "", 0);
    while (n--) {
        uint32_t r = cli_grammar_rule(g);
        char pattern[64];
        snprintf(pattern, sizeof pattern, "[%s]%%", class);
        SEQUENCE(g, r, pattern, rest);
        SEQUENCE(g, r, "", 0);
        rest = r;
    }
    return rest;
}

static uint32_t space(struct compiler *c)
{
    if (c->space)
        return c->space;
    uint32_t indent = up_to(c->g, "  ", INDENT);
    c->space = cli_grammar_rule(c->g);
    SEQUENCE(c->g, c->space, "", 0);
    SEQUENCE(c->g, c->space, " ", 0);
    SEQUENCE(c->g, c->space, "\n%", indent);
    return c->space;
}

/* Characters as UTF-8 has them, escapes without halves of surrogates and without zero. */
static uint32_t string(struct compiler *c)
{
    struct cli_grammar *g = c->g;
    if (c->string)
        return c->string;
    uint32_t hex = cli_grammar_rule(g), hex2 = cli_grammar_rule(g), tail = cli_grammar_rule(g);
    uint32_t escape = cli_grammar_rule(g), chars = cli_grammar_rule(g);
    SEQUENCE(g, hex, "[09afAF]", 0);
    SEQUENCE(g, hex2, "%%", hex, hex);
    SEQUENCE(g, tail, "[\x80\xbf]", 0);
    SEQUENCE(g, escape, "[\"\"\\\\//bbffnnrrtt]", 0);
    SEQUENCE(g, escape, "u[19acefACEF]%%", hex, hex2);
    SEQUENCE(g, escape, "u0[19afAF]%", hex2);
    SEQUENCE(g, escape, "u00[19afAF]%", hex);
    SEQUENCE(g, escape, "u000[19afAF]", 0);
    SEQUENCE(g, escape, "u[ddDD][07]%", hex2);
    SEQUENCE(g, chars, "", 0);
    cli_grammar_begin(g, chars);
    cli_grammar_class(g, " !#[]\x7f");
    cli_grammar_ref(g, chars);
    cli_grammar_end(g);
    SEQUENCE(g, chars, "\\%%", escape, chars);
    SEQUENCE(g, chars, "[\xc2\xdf]%%", tail, chars);
    SEQUENCE(g, chars, "\xe0[\xa0\xbf]%%", tail, chars);
    SEQUENCE(g, chars, "[\xe1\xec\xee\xef]%%%", tail, tail, chars);
    SEQUENCE(g, chars, "\xed[\x80\x9f]%%", tail, chars);
    SEQUENCE(g, chars, "\xf0[\x90\xbf]%%%", tail, tail, chars);
    SEQUENCE(g, chars, "[\xf1\xf3]%%%%", tail, tail, tail, chars);
    SEQUENCE(g, chars, "\xf4[\x80\x8f]%%%", tail, tail, chars);
    c->string = cli_grammar_rule(g);
    SEQUENCE(g, c->string, "\"%\"", chars);
    return c->string;
}

static uint32_t integer(struct compiler *c)
{
    if (c->integer)
        return c->integer;
    uint32_t digits = up_to(c->g, "09", DIGITS);
    c->integer = cli_grammar_rule(c->g);
    SEQUENCE(c->g, c->integer, "0", 0);
    SEQUENCE(c->g, c->integer, "[19]%", digits);
    SEQUENCE(c->g, c->integer, "-[19]%", digits);
    return c->integer;
}

static uint32_t number(struct compiler *c)
{
    if (c->number)
        return c->number;
    struct cli_grammar *g = c->g;
    uint32_t digits = up_to(g, "09", DIGITS), more = up_to(g, "09", 1), whole = cli_grammar_rule(g);
    uint32_t fraction = cli_grammar_rule(g), exponent = cli_grammar_rule(g);
    SEQUENCE(g, whole, "0", 0);
    SEQUENCE(g, whole, "-0", 0);
    SEQUENCE(g, whole, "[19]%", digits);
    SEQUENCE(g, whole, "-[19]%", digits);
    SEQUENCE(g, fraction, "", 0);
    SEQUENCE(g, fraction, ".[09]%", digits);
    SEQUENCE(g, exponent, "", 0);
    SEQUENCE(g, exponent, "[eeEE][09]%", more);
    SEQUENCE(g, exponent, "[eeEE][++--][09]%", more);
    c->number = cli_grammar_rule(g);
    SEQUENCE(g, c->number, "%%%", whole, fraction, exponent);
    return c->number;
}

static uint32_t object(struct compiler *c);
static uint32_t array(struct compiler *c, uint32_t item, uint32_t least, uint32_t most);

/* Anything. */
static uint32_t value(struct compiler *c)
{
    if (c->value)
        return c->value;
    struct cli_grammar *g = c->g;
    c->value = cli_grammar_rule(g);
    uint32_t o = object(c), s = string(c), n = number(c);
    if (!c->array)
        c->array = array(c, c->value, 0, UINT32_MAX);
    SEQUENCE(g, c->value, "%", o);
    SEQUENCE(g, c->value, "%", c->array);
    SEQUENCE(g, c->value, "%", s);
    SEQUENCE(g, c->value, "%", n);
    SEQUENCE(g, c->value, "true", 0);
    SEQUENCE(g, c->value, "false", 0);
    SEQUENCE(g, c->value, "null", 0);
    return c->value;
}

/* An object with any content. */
static uint32_t object(struct compiler *c)
{
    if (c->object)
        return c->object;
    struct cli_grammar *g = c->g;
    c->object = cli_grammar_rule(g);
    uint32_t v = value(c), ws = space(c), s = string(c), pair = cli_grammar_rule(g), more = cli_grammar_rule(g);
    SEQUENCE(g, pair, "%%:%%%", s, ws, ws, v, ws);
    SEQUENCE(g, more, "", 0);
    SEQUENCE(g, more, ",%%%", ws, pair, more);
    SEQUENCE(g, c->object, "{%}", ws);
    SEQUENCE(g, c->object, "{%%%}", ws, pair, more);
    return c->object;
}

static uint32_t array(struct compiler *c, uint32_t item, uint32_t least, uint32_t most)
{
    struct cli_grammar *g = c->g;
    uint32_t ws = space(c), rest = cli_grammar_rule(g), r = cli_grammar_rule(g);
    SEQUENCE(g, rest, "", 0);
    if (most == UINT32_MAX)
        SEQUENCE(g, rest, ",%%%%", ws, item, ws, rest);
    /* From the last to the second: `rest` is what may come after so many. */
    uint32_t count = most == UINT32_MAX ? least : most;
    for (uint32_t i = count; i > 1; i--) {
        uint32_t before = cli_grammar_rule(g);
        SEQUENCE(g, before, ",%%%%", ws, item, ws, rest);
        if (i > least)
            SEQUENCE(g, before, "", 0);
        rest = before;
    }
    if (!least)
        SEQUENCE(g, r, "[[[]%]", ws);
    if (most)
        SEQUENCE(g, r, "[[[]%%%%]", ws, item, ws, rest);
    return r;
}

/* ------------------------------------------------------------------------------------------------ the schema */

static uint32_t compile(struct compiler *c, const json_t *schema);

static uint32_t literal(struct compiler *c, const json_t *v)
{
    uint32_t r = cli_grammar_rule(c->g);
    char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_SORT_KEYS | JSON_REAL_PRECISION(15));
    double d = json_is_number(v) ? json_number_value(v) : NAN;
    char whole[40];
    if (!text) {
        c->err = DL_ENOMEM;
        return 0;
    }
    snprintf(whole, sizeof whole, "%.0f", d); /* numbers were read as reals: 3.0 is meant as 3 */
    const char *shown = d == floor(d) && fabs(d) < 1e15 ? whole : text;
    cli_grammar_begin(c->g, r);
    cli_grammar_text(c->g, shown, strlen(shown));
    cli_grammar_end(c->g);
    free(text);
    return r;
}

static uint32_t choice_of(struct compiler *c, const char *name, const json_t *list,
                          uint32_t (*make)(struct compiler *c, const json_t *v))
{
    if (!json_is_array(list) || !json_array_size(list) || json_array_size(list) > MOST_LITERALS)
        return refuse(c, "%s: must be a list of 1 to %u entries", name, MOST_LITERALS);
    uint32_t r = cli_grammar_rule(c->g);
    for (size_t i = 0; i < json_array_size(list) && !c->err; i++) {
        uint32_t one = make(c, json_array_get(list, i));
        if (!c->err)
            SEQUENCE(c->g, r, "%", one);
    }
    return r;
}

/* What is left of an object from property i on: each that is needed comes, others may; `first`: nothing stands before. */
struct property {
    uint32_t pair; /* "name": value */
    bool needed;
};

static uint32_t properties(struct compiler *c, const struct property *p, uint32_t n)
{
    struct cli_grammar *g = c->g;
    uint32_t ws = space(c), *after = dl_calloc(n + 1, sizeof *after), r = cli_grammar_rule(g);
    if (!after) {
        c->err = DL_ENOMEM;
        return 0;
    }
    for (uint32_t i = n + 1; i-- > 0;) { /* after[i]: something stands before, and property i is next */
        after[i] = cli_grammar_rule(g);
        uint32_t k = i;
        for (; k < n; k++) {
            SEQUENCE(g, after[i], ",%%%%", ws, p[k].pair, ws, after[k + 1]);
            if (p[k].needed)
                break;
        }
        if (k == n)
            SEQUENCE(g, after[i], "", 0);
    }
    uint32_t k = 0;
    for (; k < n; k++) {
        SEQUENCE(g, r, "{%%%%}", ws, p[k].pair, ws, after[k + 1]);
        if (p[k].needed)
            break;
    }
    if (k == n)
        SEQUENCE(g, r, "{%}", ws);
    free(after);
    return r;
}

static bool is_needed(const json_t *required, const char *name)
{
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *one = json_string_value(json_array_get(required, i));
        if (one && !strcmp(one, name))
            return true;
    }
    return false;
}

static uint32_t pair(struct compiler *c, const char *name, uint32_t value_rule)
{
    uint32_t ws = space(c), r = cli_grammar_rule(c->g);
    json_t *v = json_string(name);
    uint32_t key = literal(c, v);
    json_decref(v);
    SEQUENCE(c->g, r, "%:%%", key, ws, value_rule);
    return r;
}

static uint32_t object_of(struct compiler *c, const json_t *schema)
{
    json_t *props = json_object_get(schema, "properties");
    const json_t *required = json_object_get(schema, "required"),
                 *others = json_object_get(schema, "additionalProperties");
    struct property p[CLI_SCHEMA_MAX_PROPERTIES];
    uint32_t n = 0;
    const char *name;
    json_t *sub;
    if (others && !json_is_boolean(others))
        return refuse(c, "additionalProperties: only true and false are supported");
    if ((props && !json_is_object(props)) || (required && !json_is_array(required)))
        return refuse(c, "properties must be an object, and required a list");
    if (json_object_size(props) + json_array_size(required) > CLI_SCHEMA_MAX_PROPERTIES)
        return refuse(c, "properties: more than %u of one object", CLI_SCHEMA_MAX_PROPERTIES);
    if (!json_object_size(props) && !json_array_size(required) && !json_is_false(others))
        return object(c);
    json_object_foreach(props, name, sub)
    {
        uint32_t v = compile(c, sub);
        if (c->err)
            return 0;
        p[n].needed = is_needed(required, name);
        p[n++].pair = pair(c, name, v);
    }
    for (size_t i = 0; i < json_array_size(required) && !c->err; i++) { /* needed, but not described: anything */
        name = json_string_value(json_array_get(required, i));
        if (!name)
            return refuse(c, "required: must be a list of names");
        if (json_object_get(props, name))
            continue;
        if (json_is_false(others))
            return refuse(c, "required: '%.60s' is not among the properties", name);
        p[n].needed = true;
        p[n++].pair = pair(c, name, value(c));
    }
    return c->err ? 0 : properties(c, p, n);
}

static uint32_t limit(struct compiler *c, const json_t *schema, const char *name, uint32_t otherwise)
{
    const json_t *v = json_object_get(schema, name);
    double d = json_number_value(v);
    if (!v)
        return otherwise;
    if (!json_is_number(v) || d < 0 || d != floor(d) || d > CLI_SCHEMA_MAX_ITEMS)
        return refuse(c, "%s: must be a whole number up to %u", name, CLI_SCHEMA_MAX_ITEMS);
    return (uint32_t)d;
}

static uint32_t array_of(struct compiler *c, const json_t *schema)
{
    const json_t *items = json_object_get(schema, "items");
    uint32_t least = limit(c, schema, "minItems", 0), most = limit(c, schema, "maxItems", UINT32_MAX);
    if (!c->err && least > most)
        return refuse(c, "minItems: is more than maxItems");
    uint32_t item = c->err ? 0 : items ? compile(c, items) : value(c);
    return c->err ? 0 : array(c, item, least, most);
}

static uint32_t type_of(struct compiler *c, const json_t *schema, const char *type)
{
    uint32_t r;
    if (!strcmp(type, "object"))
        return object_of(c, schema);
    if (!strcmp(type, "array"))
        return array_of(c, schema);
    if (!strcmp(type, "string"))
        return string(c);
    if (!strcmp(type, "number"))
        return number(c);
    if (!strcmp(type, "integer"))
        return integer(c);
    if (strcmp(type, "boolean") != 0 && strcmp(type, "null") != 0)
        return refuse(c, "type: '%.40s' is unknown", type);
    r = cli_grammar_rule(c->g);
    if (*type == 'b') {
        SEQUENCE(c->g, r, "true", 0);
        SEQUENCE(c->g, r, "false", 0);
    } else {
        SEQUENCE(c->g, r, "null", 0);
    }
    return r;
}

static uint32_t types_of(struct compiler *c, const json_t *schema, const json_t *type)
{
    if (json_is_string(type))
        return type_of(c, schema, json_string_value(type));
    if (!json_is_array(type) || !json_array_size(type))
        return refuse(c, "type: must be a name or a list of names");
    uint32_t r = cli_grammar_rule(c->g);
    for (size_t i = 0; i < json_array_size(type) && !c->err; i++) {
        const char *name = json_string_value(json_array_get(type, i));
        uint32_t one = name ? type_of(c, schema, name) : refuse(c, "type: must be a list of names");
        if (!c->err)
            SEQUENCE(c->g, r, "%", one);
    }
    return r;
}

/* "#", "#/$defs/NAME", "#/definitions/NAME". A schema may refer to itself: its rule is there before what it says. */
static uint32_t reference(struct compiler *c, const json_t *ref)
{
    const char *path = json_string_value(ref);
    const json_t *target = NULL;
    if (path && !strcmp(path, "#"))
        target = c->root;
    else if (path && !strncmp(path, "#/$defs/", 8))
        target = json_object_get(json_object_get(c->root, "$defs"), path + 8);
    else if (path && !strncmp(path, "#/definitions/", 14))
        target = json_object_get(json_object_get(c->root, "definitions"), path + 14);
    if (!target)
        return refuse(c, "$ref: '%.100s' is not in the schema", path ? path : "");
    for (uint32_t i = 0; i < c->n_refs; i++)
        if (c->refs[i].schema == target)
            return c->refs[i].rule;
    if (c->n_refs == DL_COUNT_OF(c->refs))
        return refuse(c, "$ref: more than %zu different ones", DL_COUNT_OF(c->refs));
    uint32_t r = cli_grammar_rule(c->g);
    c->refs[c->n_refs].schema = target;
    c->refs[c->n_refs++].rule = r;
    uint32_t is = compile(c, target);
    if (!c->err)
        SEQUENCE(c->g, r, "%", is);
    return r;
}

static void check_names(struct compiler *c, const json_t *schema)
{
    static const char *const known[] = {
        "type",     "properties",  "required", "additionalProperties",
        "items",    "minItems",    "maxItems", "enum",
        "const",    "anyOf",       "allOf",    "$ref",
        "$defs",    "definitions", "title",    "description",
        "default",  "examples",    "$schema",  "$id",
        "$comment", "name",        "strict",   "deprecated",
        "readOnly", "writeOnly",
    };
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)schema, name, v)
    {
        size_t i = 0;
        while (i < DL_COUNT_OF(known) && strcmp(known[i], name) != 0)
            i++;
        if (i == DL_COUNT_OF(known))
            refuse(c, "'%.60s' is not supported", name);
    }
}

static uint32_t compile_object(struct compiler *c, const json_t *schema)
{
    const json_t *type = json_object_get(schema, "type"), *v;
    check_names(c, schema);
    if (c->err)
        return 0;
    if ((v = json_object_get(schema, "$ref")))
        return reference(c, v);
    if ((v = json_object_get(schema, "const")))
        return literal(c, v);
    if ((v = json_object_get(schema, "enum")))
        return choice_of(c, "enum", v, literal);
    if ((v = json_object_get(schema, "anyOf")))
        return choice_of(c, "anyOf", v, compile);
    if ((v = json_object_get(schema, "allOf"))) {
        if (json_array_size(v) != 1)
            return refuse(c, "allOf: only of one schema");
        return compile(c, json_array_get(v, 0));
    }
    if (type)
        return types_of(c, schema, type);
    if (json_object_get(schema, "properties") || json_object_get(schema, "required"))
        return object_of(c, schema);
    return json_object_get(schema, "items") ? array_of(c, schema) : value(c);
}

static uint32_t compile(struct compiler *c, const json_t *schema)
{
    if (json_is_true(schema))
        return value(c);
    if (!json_is_object(schema))
        return refuse(c, "a schema must be an object");
    if (c->depth == MOST_DEPTH)
        return refuse(c, "more than %u schemas within each other", MOST_DEPTH);
    c->depth++;
    uint32_t r = compile_object(c, schema);
    c->depth--;
    return r;
}

int cli_schema_grammar(const json_t *schema, struct cli_grammar *out, char *why, size_t n_why)
{
    struct compiler c = {.g = out, .root = schema, .why = why, .n_why = n_why};
    *out = (struct cli_grammar){0};
    *why = 0;
    uint32_t whole = cli_grammar_rule(out), is = schema ? compile(&c, schema) : object(&c), ws = space(&c);
    if (!c.err)
        SEQUENCE(out, whole, "%%", ws, is);
    if (!c.err && out->err == DL_ELIMIT)
        refuse(&c, "it is too large");
    if (!c.err)
        c.err = out->err;
    struct cli_grammar_state s = {0};
    if (!c.err)
        c.err = cli_grammar_start(&s, out);
    cli_grammar_state_finish(&s);
    if (c.err && !*why)
        snprintf(why, n_why, "%s", c.err == DL_EINVAL ? "nothing can fit it" : "the server is out of memory");
    return c.err;
}
