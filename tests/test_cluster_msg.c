/* SPDX-License-Identifier: MIT
 *
 * tests/test_cluster_msg.c: messages between a root and a worker by themselves: each is read back as it was written, and refused, in one
 * line, when it is cut short, too long, or altered into something that makes no sense.
 *
 * DLLAMA_WRITE_CORPUS=FOLDER writes the good examples there, for the fuzz target.
 */
#include "common.h"

#include "cluster_decode.h"

static void good_ones_are_read_back(void **state)
{
    (void)state;
    const char *folder = getenv("DLLAMA_WRITE_CORPUS");
    for (int type = ENG_MSG_HELLO; type < ENG_MSG_END; type++) {
        struct eng_out o = {0};
        example((enum eng_msg)type, &o);
        if (decode_one((const uint8_t *)o.s.v, o.s.len))
            fail_msg("%s", eng_msg_name((unsigned)type));
        if (folder) {
            char path[512];
            snprintf(path, sizeof path, "%s/%s", folder, eng_msg_name((unsigned)type));
            assert_true(dl_file_replace(path, o.s.v, o.s.len));
        }
        eng_out_finish(&o);
    }
    assert_string_equal(eng_msg_name(0), "?");
    assert_string_equal(eng_msg_name(ENG_MSG_BYE), "BYE");
    assert_string_equal(eng_msg_name(ENG_MSG_END), "?");
}

static void too_short_or_too_long(void **state)
{
    (void)state;
    for (int type = ENG_MSG_HELLO; type < ENG_MSG_END; type++) {
        struct eng_out o = {0};
        example((enum eng_msg)type, &o);
        for (size_t n = 1; n < o.s.len; n++)
            if (type != ENG_MSG_DATA || n <= 13) { /* its length is its own */
                int err = decode_one((const uint8_t *)o.s.v, n);
                if (err != DL_EFORMAT)
                    fail_msg("%s cut to %zu of %zu: %s", eng_msg_name((unsigned)type), n, o.s.len, dl_err_name(err));
            }
        eng_put_u8(&o, 0);
        if (type != ENG_MSG_DATA)
            assert_int_equal(decode_one((const uint8_t *)o.s.v, o.s.len), DL_EFORMAT);
        eng_out_finish(&o);
    }
    uint8_t *room;
    struct eng_out o = {0};
    eng_data_write(&o, 0, 0, ENG_CHUNK_MOST + 1, &room);
    assert_int_equal(decode_one((const uint8_t *)o.s.v, o.s.len), DL_EFORMAT);
    eng_out_finish(&o);
}

/* Flipped bits, numbers at their ends, runs of one value, pieces moved: a thousand of each type. */
static void altered(void **state)
{
    (void)state;
    uint64_t rng = 42;
    unsigned refused = 0, accepted = 0;
    for (int type = ENG_MSG_HELLO; type < ENG_MSG_END; type++) {
        struct eng_out o = {0};
        example((enum eng_msg)type, &o);
        uint8_t *m = malloc(o.s.len);
        for (int i = 0; i < 1000; i++) {
            memcpy(m, o.s.v, o.s.len);
            for (uint64_t k = 1 + test_rand(&rng) % 3; k && o.s.len > 1; k--) {
                static const uint32_t ends[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffffffe, 0x7fc00000};
                size_t at = 1 + (size_t)(test_rand(&rng) % (o.s.len - 1)), left = o.s.len - at;
                uint32_t v = ends[test_rand(&rng) % DL_COUNT_OF(ends)];
                if (test_rand(&rng) % 2)
                    m[at] ^= (uint8_t)(1u << test_rand(&rng) % 8);
                else
                    memcpy(m + at, &v, DL_MIN(left, sizeof v));
            }
            if (decode_one(m, o.s.len))
                refused++;
            else
                accepted++;
        }
        free(m);
        eng_out_finish(&o);
    }
    printf("%u refused, %u still made sense\n", refused, accepted);
    assert_true(refused > 2000 && accepted > 1000);
}

/* What a header promises in words, one by one. */
static int with_u32(enum eng_msg type, size_t at, uint32_t v)
{
    struct eng_out o = {0};
    example(type, &o);
    assert_true(at + sizeof v <= o.s.len);
    memcpy(o.s.v + at, &v, sizeof v);
    int err = decode_one((const uint8_t *)o.s.v, o.s.len);
    eng_out_finish(&o);
    return err;
}

/* Q120 is what travels, not what anybody asks for: no type of weights, of a cache or of --wire. */
static void a_type_that_only_travels(void **state)
{
    (void)state;
    struct eng_out example_bytes = {0};
    example(ENG_MSG_MODEL, &example_bytes);
    for (int kind = 0; kind < 5; kind++) {
        struct eng_in in = {"test", (const uint8_t *)example_bytes.s.v, example_bytes.s.len};
        struct eng_model_msg m;
        struct eng_out o = {0};
        assert_int_equal(eng_model_read(&in, DECODE_NODES, 1, &m), DL_OK);
        enum dl_type *which[] = {&m.types.output, &m.types.layer[DL_T_FFN_UP], &m.opts.kv_type, &m.opts.wire};
        if (kind < 4)
            *which[kind] = DL_Q120;
        eng_model_write(&o, &m);
        assert_int_equal(decode_one((const uint8_t *)o.s.v, o.s.len), kind < 4 ? DL_EFORMAT : DL_OK);
        eng_out_finish(&o);
        eng_model_finish(&m);
    }
    eng_out_finish(&example_bytes);
    struct eng_out o = {0};
    eng_measure_write(&o, &(struct eng_measure){.dim = 2048, .weight = DL_Q120, .speed = true});
    assert_int_equal(decode_one((const uint8_t *)o.s.v, o.s.len), DL_EFORMAT);
    eng_out_finish(&o);
}

static void limits(void **state)
{
    (void)state;
    assert_int_equal(with_u32(ENG_MSG_HELLO, 1, 0x31323334), DL_EFORMAT); /* another language */
    assert_int_equal(with_u32(ENG_MSG_HELLO, 5, 77), DL_OK);              /* another protocol: the rest is not read */
    assert_int_equal(with_u32(ENG_MSG_HELLO, 9, 0xffffffff), DL_EFORMAT);
    assert_int_equal(with_u32(ENG_MSG_MODEL, 1, 4), DL_EFORMAT);          /* nodes */
    assert_int_equal(with_u32(ENG_MSG_MODEL, 5, 2), DL_EFORMAT);          /* for another one */
    assert_int_equal(with_u32(ENG_MSG_MODEL, 17, 1u << 30), DL_EUNSUP);   /* layers */
    assert_int_equal(with_u32(ENG_MSG_MODEL, 21, 5), DL_EFORMAT);         /* heads that do not share the KV heads */
    assert_int_equal(with_u32(ENG_MSG_MEASURE, 1, 0), DL_EFORMAT);        /* no width */
    assert_int_equal(with_u32(ENG_MSG_MEASURE, 1, 2049), DL_EFORMAT);     /* no whole blocks */
    assert_int_equal(with_u32(ENG_MSG_MEASURE, 1, 1u << 21), DL_EFORMAT); /* beyond all models */
    assert_int_equal(with_u32(ENG_MSG_RATE, 5, 0x7ff80000), DL_EFORMAT);  /* not a number */
    assert_int_equal(with_u32(ENG_MSG_RATE, 5, 0xc20bf08e), DL_EFORMAT);  /* negative */
    assert_int_equal(with_u32(ENG_MSG_LINK, 2, 0), DL_EFORMAT);           /* no rounds */
    assert_int_equal(with_u32(ENG_MSG_LINK, 6, 0), DL_EFORMAT);           /* no bytes */
    assert_int_equal(with_u32(ENG_MSG_LINK, 6, 1u << 21), DL_EFORMAT);    /* DATA is smaller */
    assert_int_equal(with_u32(ENG_MSG_OFFER, 1, 4), DL_EFORMAT);
    assert_int_equal(with_u32(ENG_MSG_OFFER, 5, 0x10000004), DL_EFORMAT);
    assert_int_equal(with_u32(ENG_MSG_STEP, 9, 3), DL_EFORMAT);    /* sequences */
    assert_int_equal(with_u32(ENG_MSG_STEP, 13, 0), DL_EFORMAT);   /* no token in the first lane, */
    assert_int_equal(with_u32(ENG_MSG_STEP, 13, 6), DL_EFORMAT);   /* and more than there are */
    assert_int_equal(with_u32(ENG_MSG_STEP, 17, 127), DL_EFORMAT); /* 127 + 2 positions of 128 */
    assert_int_equal(with_u32(ENG_MSG_STEP, 21, 0), DL_EFORMAT);   /* no tokens */
    assert_int_equal(with_u32(ENG_MSG_STEP, 26, 257), DL_EFORMAT); /* candidates */
    assert_int_equal(with_u32(ENG_MSG_STEP, 30, 0), DL_EFORMAT);   /* a temperature of 0 */
    assert_int_equal(with_u32(ENG_MSG_STEP, 30, 0x7fc00000), DL_EFORMAT);
    assert_int_equal(with_u32(ENG_MSG_STEP, 34, 4), DL_EFORMAT);  /* keeps more blocks than there were */
    assert_int_equal(with_u32(ENG_MSG_STEP, 38, 8), DL_EFORMAT);  /* a block of 8 */
    assert_int_equal(with_u32(ENG_MSG_LOGITS, 1, 8), DL_EFORMAT); /* another step */
    assert_int_equal(with_u32(ENG_MSG_LOGITS, 9, 2), DL_EFORMAT); /* rows */
    assert_int_equal(with_u32(ENG_MSG_LOGITS, 13 + 4 * DECODE_VOCAB, 2), DL_EFORMAT);          /* candidates */
    assert_int_equal(with_u32(ENG_MSG_LOGITS, 17 + 4 * DECODE_VOCAB, 39), DL_EFORMAT);         /* somebody else's id */
    assert_int_equal(with_u32(ENG_MSG_LOGITS, 21 + 4 * DECODE_VOCAB, 0x7fc00000), DL_EFORMAT); /* not a number */
}

static int setup(void **state)
{
    (void)state;
    dl_log_set(decode_count, NULL, DL_LOG_DEBUG);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_ones_are_read_back),
        cmocka_unit_test(too_short_or_too_long),
        cmocka_unit_test(altered),
        cmocka_unit_test(limits),
        cmocka_unit_test(a_type_that_only_travels),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
