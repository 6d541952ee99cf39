/* SPDX-License-Identifier: MIT
 *
 * tests/test_split.c: shares of real shapes over clusters of all sizes: everything is owned once, memory is respected, noise changes nothing, and
 * what is said of it is true.
 */
#include "common.h"
#include "dl/split.h"

#include <math.h>
#include <time.h>

#define GIB ((uint64_t)1 << 30)
#define MOST 24

struct rig {
    dl_model *model;
    struct dl_tensor_types types;
    struct dl_split_node nodes[MOST];
    char names[MOST][16];
    struct dl_split_input in;
    struct dl_split split;
};

static void open_rig(struct rig *r, const char *shape, uint32_t layers, uint32_t n)
{
    memset(r, 0, sizeof *r);
    assert_int_equal(dl_model_open_shape(shape, layers, false, &r->model), 0);
    assert_int_equal(dl_model_types(r->model, &r->types), 0);
    for (uint32_t i = 0; i < n; i++) {
        snprintf(r->names[i], sizeof r->names[i], i ? "node%u" : "root", i);
        r->nodes[i] =
            (struct dl_split_node){.name = r->names[i], .bytes_per_s = 20e9, .op_ns = 2000, .submit_ns = 20000};
    }
    r->in = (struct dl_split_input){.model = shape,
                                    .h = dl_model_header(r->model),
                                    .types = &r->types,
                                    .nodes = r->nodes,
                                    .n_nodes = n,
                                    .link = {.latency_ns = 50e3, .bytes_per_s = 117e6},
                                    .kv_type = DL_F16,
                                    .wire = DL_Q80};
}

static void close_rig(struct rig *r)
{
    dl_split_finish(&r->split);
    dl_tensor_types_finish(&r->types);
    dl_model_close(&r->model);
}

static void owned_once(const struct rig *r)
{
    const struct dl_model_header *h = r->in.h;
    const uint32_t group = h->n_heads / h->n_kv_heads;
    uint32_t head = 0, ffn = 0, vocab = 0;
    double share = 0;
    for (uint32_t i = 0; i < r->in.n_nodes; i++) {
        const struct dl_split_part *p = &r->split.parts[i];
        const struct dl_slice *s = &p->slice;
        if (s->n_heads) {
            assert_int_equal(s->head0, head);
            assert_int_equal(s->kv0, head / group);
            assert_int_equal(s->kv0 + s->n_kv_heads - 1, (head + s->n_heads - 1) / group);
        }
        if (s->n_ffn) {
            assert_int_equal(s->ffn0, ffn);
            assert_int_equal(ffn % DL_BLOCK, 0);
        }
        if (s->n_vocab)
            assert_int_equal(s->vocab0, vocab);
        head += s->n_heads, ffn += s->n_ffn, vocab += s->n_vocab;
        share += p->share;
        if (p->memory)
            assert_true(p->weight_bytes + p->kv_bytes + p->act_bytes <= p->memory);
        for (int ph = 0; ph < DL_PHASE_COUNT; ph++)
            assert_true(p->ns[ph] <= r->split.compute_ns[ph]);
    }
    assert_int_equal(head, h->n_heads);
    assert_int_equal(ffn, h->n_experts ? h->expert_dim : h->hidden_dim);
    assert_int_equal(vocab, h->vocab);
    assert_true(fabs(share - 1) < 1e-9);
}

static double draw(uint64_t *rng, double low, double high)
{
    return low + (high - low) * ((double)test_randf(rng) + 1) / 2;
}

/* Every shape, 1 to 16 nodes of any speed: more nodes than KV heads, heads that no number divides, experts. */
static void any_nodes_share_any_shape(void **state)
{
    (void)state;
    uint64_t rng = 7;
    for (uint32_t s = 0; dl_shape_name(s); s++)
        for (uint32_t n = 1; n <= 16; n++) {
            struct rig r;
            open_rig(&r, dl_shape_name(s), 2, n);
            for (uint32_t i = 0; i < n; i++)
                r.nodes[i].bytes_per_s = 4e9 * pow(40, draw(&rng, 0, 1));
            assert_int_equal(dl_split_make(&r.in, &r.split), 0);
            owned_once(&r);
            assert_int_equal(r.split.ctx, 8192);
            close_rig(&r);
        }
}

/* Time goes down as nodes of one kind are added, on a network that costs nothing, but for what cannot be divided. */
static void equal_nodes_add_up(void **state)
{
    (void)state;
    double alone = 0;
    for (uint32_t n = 1; n <= 16; n++) {
        struct rig r;
        open_rig(&r, "llama3.3-70b", 0, n);
        r.in.link = (struct dl_split_link){0};
        for (uint32_t i = 0; i < n; i++)
            r.nodes[i].op_ns = r.nodes[i].submit_ns = 0;
        assert_int_equal(dl_split_make(&r.in, &r.split), 0);
        owned_once(&r);
        double ns = 0;
        for (int p = 0; p < DL_PHASE_COUNT; p++)
            ns += r.split.compute_ns[p];
        alone = n == 1 ? ns : alone;
        if (ns > alone / n * 1.1)
            fail_msg("%u nodes: %.2f ms, alone %.2f", n, ns / 1e6, alone / 1e6);
        close_rig(&r);
    }
}

static void noise_changes_nothing(void **state)
{
    (void)state;
    uint64_t rng = 8;
    struct dl_split first = {0};
    for (int round = 0; round < 40; round++) {
        struct rig r;
        open_rig(&r, "llama3.2-1b", 0, 5);
        r.in.alike = 0.1;
        for (uint32_t i = 0; i < 5; i++) {
            r.nodes[i].bytes_per_s *= draw(&rng, 0.97, 1.03);
            r.nodes[i].op_ns *= draw(&rng, 0.5, 2);
            r.nodes[i].submit_ns *= draw(&rng, 0.5, 2);
            r.nodes[i].memory = (uint64_t)(draw(&rng, 7.1, 8.9) * (double)GIB);
        }
        assert_int_equal(dl_split_make(&r.in, &r.split), 0);
        owned_once(&r);
        for (uint32_t i = 0; round && i < 5; i++)
            assert_memory_equal(&r.split.parts[i].slice, &first.parts[i].slice, sizeof(struct dl_slice));
        for (uint32_t i = 1; i < 5; i++) /* and equal, but for what cannot be divided */
            assert_true(abs((int)r.split.parts[i].slice.n_ffn - (int)r.split.parts[0].slice.n_ffn) <= 128);
        if (!round) {
            first = r.split;
            r.split = (struct dl_split){0};
        }
        close_rig(&r);
    }
    dl_split_finish(&first);
}

/* What a caller asks for is what dl_slices_make makes of it. */
static void given_shares_are_taken(void **state)
{
    (void)state;
    struct rig r;
    struct dl_slice slices[3];
    const double shares[] = {3, 1, 2};
    open_rig(&r, "llama3.2-1b", 0, 3);
    r.in.shares = shares;
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    owned_once(&r);
    assert_int_equal(dl_slices_make(r.in.h, dl_column_unit(r.in.h, &r.types), shares, 3, slices), 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_memory_equal(&r.split.parts[i].slice, &slices[i], sizeof slices[i]);
    close_rig(&r);
}

/* What is reported as needed is what the plan's buffers take. */
static void sizes_are_those_of_the_plans(void **state)
{
    (void)state;
    struct rig r;
    open_rig(&r, "qwen3-30b-a3b", 0, 3);
    r.in.ctx = 1000;
    r.in.max_sessions = 2;
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    uint64_t weights = 0, kv = 0;
    for (uint32_t i = 0; i < 3; i++) {
        weights += r.split.parts[i].weight_bytes;
        kv += r.split.parts[i].kv_bytes;
    }
    /* All but the embedding; norms and router on each node. */
    uint64_t embed = (uint64_t)151936 * 2048 / 32 * 18, all = dl_model_weight_bytes(r.model) - embed;
    assert_in_range(weights, all, all + all / 50);
    const uint64_t per_head = (uint64_t)2 * 128 * 2 * 48 * 2 * 1024; /* k and v, f16, layers, sessions, whole blocks */
    assert_in_range(kv, 4 * per_head, 6 * per_head);
    assert_int_equal(kv % per_head, 0);
    close_rig(&r);
}

static void clamped_by_memory(void **state)
{
    (void)state;
    uint64_t rng = 9;
    for (uint32_t n = 3; n <= 16; n += 4)
        for (int round = 0; round < 3; round++) {
            struct rig r;
            double room = 0, at[MOST];
            open_rig(&r, "llama3.3-70b", 8, n);
            for (uint32_t i = 0; i < n; i++) {
                r.nodes[i].bytes_per_s = 5e9 * pow(20, draw(&rng, 0, 1));
                room += at[i] = draw(&rng, 0.3, 1);
            }
            for (uint32_t i = 0; i < n; i++) /* 4.3 GiB of weights, and KV heads that some share */
                r.nodes[i].memory = (uint64_t)(at[i] / room * draw(&rng, 7.0, 8.0) * (double)GIB);
            int err = dl_split_make(&r.in, &r.split);
            assert_int_equal(err, 0);
            owned_once(&r);
            close_rig(&r);
        }
}

static struct test_log log_lines;

static void refused_with_numbers(void **state)
{
    (void)state;
    struct rig r;
    const double shares[] = {1, 1};
    log_lines = (struct test_log){0};
    dl_log_set(test_log_sink, &log_lines, DL_LOG_ERROR);
    open_rig(&r, "llama3.3-70b", 0, 2);
    r.nodes[0].memory = 20 * GIB;
    r.nodes[1].memory = 12 * GIB;
    assert_int_equal(dl_split_make(&r.in, &r.split), DL_ELIMIT);
    assert_null(r.split.parts);
    assert_int_equal(log_lines.n, 1);
    assert_non_null(strstr(log_lines.last, "llama3.3-70b needs 36."));
    assert_non_null(strstr(log_lines.last, "32.0 GiB (root 20.0 GiB, node1 12.0 GiB)"));
    assert_non_null(strstr(log_lines.last, "--ctx"));

    r.nodes[0].memory = 36 * GIB;
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    owned_once(&r);
    assert_true(r.split.parts[0].weight_bytes > 2 * r.split.parts[1].weight_bytes);
    dl_split_finish(&r.split);
    r.in.shares = shares;
    assert_int_equal(dl_split_make(&r.in, &r.split), DL_ELIMIT);
    assert_int_equal(log_lines.n, 2);
    assert_non_null(strstr(log_lines.last, "node1 18."));
    assert_non_null(strstr(log_lines.last, "of 12.0 GiB"));
    r.in.shares = NULL;
    r.nodes[1].memory = 1000000;
    assert_int_equal(dl_split_make(&r.in, &r.split), DL_ELIMIT);
    assert_non_null(strstr(log_lines.last, "node1 has 1.0 MiB free"));
    r.nodes[1].memory = 12 * GIB;
    r.in.ctx = 131072; /* 40 GiB of KV cache */
    assert_int_equal(dl_split_make(&r.in, &r.split), DL_ELIMIT);
    assert_non_null(strstr(log_lines.last, "KV cache 40.0 GiB for a context of 131072"));
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    close_rig(&r);
}

/* The largest context up to 8192 that all nodes together can hold. */
static void context_that_fits(void **state)
{
    (void)state;
    static const struct {
        double gib;
        uint32_t least, most;
    } cases[] = {{30, 8192, 8192}, {19.4, 1024, 4096}};
    for (size_t i = 0; i < DL_COUNT_OF(cases); i++) {
        struct rig r;
        open_rig(&r, "llama3.3-70b", 0, 2);
        r.in.max_sessions = 2;
        for (int n = 0; n < 2; n++)
            r.nodes[n].memory = (uint64_t)((cases[i].gib + 1.02) * (double)GIB);
        assert_int_equal(dl_split_make(&r.in, &r.split), 0);
        assert_in_range(r.split.ctx, cases[i].least, cases[i].most);
        owned_once(&r);
        close_rig(&r);
    }
}

static void slow_nodes_are_named(void **state)
{
    (void)state;
    struct rig r;
    struct dl_str text = {0};
    open_rig(&r, "llama3.1-8b", 0, 3);
    r.nodes[0].bytes_per_s = 400e9; /* a GPU, and two small boards behind a slow network */
    r.in.link.latency_ns = 300e3;
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    assert_int_equal(r.split.n_slow, 2);
    assert_true(r.split.parts[1].slows && r.split.parts[2].slows && !r.split.parts[0].slows);
    assert_true(r.split.tok_s_without > r.split.tok_s);
    assert_int_equal(dl_split_advice(&r.in, &r.split, &text), 0);
    assert_non_null(strstr(text.v, "fewer nodes would be faster: without node1 and node2 about "));
    dl_split_finish(&r.split);
    dl_str_finish(&text);

    r.nodes[1].bytes_per_s = 390e9; /* a second GPU on a good network: only the small board is in the way */
    r.nodes[2].submit_ns = 1e6;
    r.in.link = (struct dl_split_link){.latency_ns = 5e3, .bytes_per_s = 5e9};
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    assert_int_equal(r.split.n_slow, 1);
    assert_true(r.split.parts[2].slows);
    assert_int_equal(r.split.parts[2].slice.n_heads + r.split.parts[2].slice.n_ffn,
                     0); /* costs more than it could do */
    owned_once(&r);
    dl_split_finish(&r.split);

    r.nodes[0].bytes_per_s = r.nodes[1].bytes_per_s = 20e9; /* equal ones: nobody */
    r.nodes[2].submit_ns = 20000;
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    assert_int_equal(r.split.n_slow, 0);
    assert_int_equal(dl_split_advice(&r.in, &r.split, &text), 0);
    assert_int_equal(text.len, 0);
    close_rig(&r);
}

/* Figures of a llama of 16 layers and 2048 values, q80: 32 sums of 2176 bytes, and a row of 64 blocks of 57 to each worker. */
static void bytes_and_times_of_the_network(void **state)
{
    (void)state;
    struct rig r;
    open_rig(&r, "qwen3-30b-a3b", 0, 4); /* of experts the sums are finer: 96 of 64 blocks of 50 bytes */
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    assert_int_equal(r.split.parts[0].sent_one_shot, 96 * 3 * 3200 + 3 * 3648);
    assert_int_equal(r.split.parts[1].sent_rs, 96 * 2 * 3 * 800);
    close_rig(&r);
    open_rig(&r, "llama3.2-1b", 0, 4);
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    assert_int_equal(r.split.parts[0].sent_one_shot, 32 * 3 * 2176 + 3 * 3648);
    assert_int_equal(r.split.parts[0].sent_rs, 32 * 2 * 3 * 544 + 3 * 3648);
    assert_int_equal(r.split.parts[1].sent_one_shot, 32 * 3 * 2176);
    double latency = 50e3 + 3 * 7e3, one_shot = 32 * (latency + 3 * 2176 / 0.117) + 2 * latency + 3 * 3648 / 0.117;
    assert_true(fabs(r.split.one_shot_ns - one_shot) < one_shot * 1e-6);
    assert_int_equal(r.split.collective,
                     r.split.rs_ns < r.split.one_shot_ns ? DL_COLLECTIVE_RS : DL_COLLECTIVE_ONE_SHOT);
    assert_true(r.split.exchange_ns == DL_MIN(r.split.rs_ns, r.split.one_shot_ns));
    dl_split_finish(&r.split);
    for (int kind = DL_COLLECTIVE_ONE_SHOT; kind <= DL_COLLECTIVE_RS; kind++) { /* as asked for */
        r.in.collective = (enum dl_collective)kind;
        assert_int_equal(dl_split_make(&r.in, &r.split), 0);
        assert_int_equal(r.split.collective, kind);
        assert_true((r.split.halves_ns > 0) == (kind == DL_COLLECTIVE_HALVES)); /* not known to be CPUs */
        assert_true(r.split.exchange_ns == (kind == DL_COLLECTIVE_RS       ? r.split.rs_ns
                                            : kind == DL_COLLECTIVE_HALVES ? r.split.halves_ns
                                                                           : r.split.one_shot_ns));
        dl_split_finish(&r.split);
    }
    r.in.collective = DL_COLLECTIVE_AUTO;
    r.in.link = (struct dl_split_link){.latency_ns = latency, .bytes_per_s = 117e6, .of_nodes = 4}; /* as measured */
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    assert_true(fabs(r.split.one_shot_ns - one_shot) < one_shot * 1e-6);
    close_rig(&r);

    open_rig(&r, "llama3.2-1b", 0, 1); /* alone: nothing is exchanged; a token reads 660 MB at 20 GB/s */
    r.nodes[0].flops = 200e9;
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    assert_true(r.split.exchange_ns == 0 && r.split.parts[0].sent_one_shot == 0);
    assert_true(r.split.tok_s > 25 && r.split.tok_s < 29);
    assert_true(r.split.prefill_tok_s > 85 && r.split.prefill_tok_s < 105); /* 2 x 0.97e9 operations each */
    close_rig(&r);
}

static void halves_are(struct rig *r, enum dl_collective asked, bool taken)
{
    struct dl_str text = {0};
    r->in.collective = asked;
    assert_int_equal(dl_split_make(&r->in, &r->split), 0);
    assert_int_equal(r->split.collective, taken ? DL_COLLECTIVE_HALVES : DL_COLLECTIVE_ONE_SHOT);
    assert_true(r->split.exchange_ns == (taken ? r->split.halves_ns : r->split.one_shot_ns));
    double ns = r->split.exchange_ns;
    for (int p = 0; p < DL_PHASE_COUNT; p++)
        ns += r->split.compute_ns[p];
    assert_true(fabs(r->split.tok_s * ns - 1e9) < 1);
    assert_int_equal(dl_split_text(&r->in, &r->split, &text), 0);
    assert_non_null(
        strstr(text.v, taken ? "sums per token: halves (one-shot " : "sums per token: one-shot (one-shot "));
    assert_true(!strstr(text.v, " ms, halves ") == !(r->split.halves_ns > 0));
    dl_str_finish(&text);
}

/* Of the same llama, two CPUs with 16 of 32 heads of 64 and 4096 of 8192 columns each, in blocks of 18 bytes for 32 values. At 20 GB/s half of wo
 * takes 29 us, of w2 118; half a sum travels for 1088 B / 117 MB/s = 9.3 us at 1 Gbit/s, and 108.8 at a tenth. */
static void sums_in_halves(void **state)
{
    (void)state;
    struct rig r;
    const double wo = 2048 * 1024 * 18 / 32.0 / 2 / 20, more = 7e3 + 3 * 2000; /* a message, and three small ops */
    open_rig(&r, "llama3.2-1b", 0, 2);
    r.nodes[0].host = r.nodes[1].host = true;
    halves_are(&r, DL_COLLECTIVE_AUTO, false); /* 9.3 us are less than that */
    assert_true(fabs(r.split.halves_ns - r.split.one_shot_ns + 32 * (1088 / 0.117 - more)) < 1);
    dl_split_finish(&r.split);
    halves_are(&r, DL_COLLECTIVE_HALVES, true);
    assert_true(r.split.halves_ns > r.split.one_shot_ns);
    dl_split_finish(&r.split);

    r.in.link.bytes_per_s = 10e6;
    halves_are(&r, DL_COLLECTIVE_AUTO, true);
    assert_true(fabs(r.split.one_shot_ns - r.split.halves_ns - 16 * (wo + 1088 / 0.01 - 2 * more)) < 1);
    assert_int_equal(r.split.parts[1].sent_one_shot, 32 * 2176);
    dl_split_finish(&r.split);
    halves_are(&r, DL_COLLECTIVE_ONE_SHOT, false);
    assert_true(r.split.halves_ns < r.split.one_shot_ns); /* said all the same */
    dl_split_finish(&r.split);
    const double given[] = {1, 1}; /* a run with these measures no node */
    r.in.shares = given;
    halves_are(&r, DL_COLLECTIVE_AUTO, false);
    dl_split_finish(&r.split);
    halves_are(&r, DL_COLLECTIVE_HALVES, true);
    dl_split_finish(&r.split);
    r.in.shares = NULL;
    r.nodes[1].host = false; /* a GPU */
    halves_are(&r, DL_COLLECTIVE_AUTO, false);
    assert_true(r.split.halves_ns == 0);
    dl_split_finish(&r.split);
    halves_are(&r, DL_COLLECTIVE_HALVES, true); /* with a submit more per sum */
    assert_true(fabs(r.split.one_shot_ns - r.split.halves_ns - 16 * (wo + 1088 / 0.01 - 2 * (more + 20000))) < 1);
    close_rig(&r);

    open_rig(&r, "qwen3-30b-a3b", 0, 2); /* the outputs of experts are there all at the same time */
    r.nodes[0].host = r.nodes[1].host = true;
    r.in.link.bytes_per_s = 10e6;
    halves_are(&r, DL_COLLECTIVE_AUTO, true);
    const double out = 2048 * 2048 * 18 / 32.0 / 2 / 20;
    assert_true(fabs(r.split.one_shot_ns - r.split.halves_ns - 48 * (DL_MIN(out, 1600 / 0.01) - more)) < 1);
    close_rig(&r);
}

static void table_says_it_all(void **state)
{
    (void)state;
    struct rig r;
    struct dl_str text = {0};
    open_rig(&r, "llama3.1-8b", 0, 2);
    r.nodes[1].device = "cpu (avx2, 4 threads)";
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    assert_int_equal(dl_split_text(&r.in, &r.split, &text), 0);
    static const char *const parts[] = {
        "root ", "node1 ", "50.0%", "cpu (avx2, 4 threads)", "64 sums per token", "tok/s at position 512"};
    for (size_t i = 0; i < DL_COUNT_OF(parts); i++)
        assert_non_null(strstr(text.v, parts[i]));
    dl_str_finish(&text);
    close_rig(&r);
}

/* Sixteen machines with just enough memory, and the largest model: in two seconds of processor time, whoever else is busy here. */
static void large_and_quick(void **state)
{
    (void)state;
    struct rig r;
    open_rig(&r, "llama3.1-405b", 0, 16);
    for (uint32_t i = 0; i < 16; i++)
        r.nodes[i].memory = (15 + i % 3) * GIB;
    r.nodes[15].bytes_per_s = 60e9;
    r.nodes[14].bytes_per_s = 8e9;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
    const double most_s = 10;
#else
    const double most_s = 2; /* five times what it takes where this was written */
#endif
    clock_t t0 = clock();
    assert_int_equal(dl_split_make(&r.in, &r.split), 0);
    double s = (double)(clock() - t0) / CLOCKS_PER_SEC;
    printf("405B on 16 nodes: planned in %.2f s of processor time\n", s);
    assert_true(s < most_s);
    owned_once(&r);
    close_rig(&r);
}

static void senseless_input_is_refused(void **state)
{
    (void)state;
    struct rig r;
    log_lines = (struct test_log){0};
    dl_log_set(test_log_sink, &log_lines, DL_LOG_ERROR);
    open_rig(&r, "llama3.2-1b", 0, 2);
    r.nodes[1].bytes_per_s = 0;
    assert_int_equal(dl_split_make(&r.in, &r.split), DL_EINVAL);
    assert_non_null(strstr(log_lines.last, "node1"));
    r.nodes[1].bytes_per_s = NAN;
    assert_int_equal(dl_split_make(&r.in, &r.split), DL_EINVAL);
    r.nodes[1].bytes_per_s = 1e9;
    r.in.link.latency_ns = INFINITY;
    assert_int_equal(dl_split_make(&r.in, &r.split), DL_EINVAL);
    r.in.link.latency_ns = 0;
    r.in.n_nodes = 0;
    assert_int_equal(dl_split_make(&r.in, &r.split), DL_EINVAL);
    r.in.n_nodes = 2;
    r.in.ctx = DL_MAX_SEQ + 1;
    assert_int_equal(dl_split_make(&r.in, &r.split), DL_ELIMIT);
    dl_log_set(NULL, NULL, DL_LOG_WARN);
    close_rig(&r);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_nodes_share_any_shape),
        cmocka_unit_test(equal_nodes_add_up),
        cmocka_unit_test(noise_changes_nothing),
        cmocka_unit_test(given_shares_are_taken),
        cmocka_unit_test(sizes_are_those_of_the_plans),
        cmocka_unit_test(clamped_by_memory),
        cmocka_unit_test(refused_with_numbers),
        cmocka_unit_test(context_that_fits),
        cmocka_unit_test(slow_nodes_are_named),
        cmocka_unit_test(bytes_and_times_of_the_network),
        cmocka_unit_test(sums_in_halves),
        cmocka_unit_test(table_says_it_all),
        cmocka_unit_test(large_and_quick),
        cmocka_unit_test(senseless_input_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
