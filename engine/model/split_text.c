/* SPDX-License-Identifier: MIT
 *
 * engine/model/split_text.c: a split as a table for people.
 */
#include "dl/split.h"

#include <stdio.h>
#include <string.h>

static double ms(double ns)
{
    return ns / 1e6;
}

static int row(const struct dl_split_input *in, const struct dl_split *s, uint32_t i, int width, struct dl_str *out)
{
    const struct dl_split_part *p = &s->parts[i];
    char has[32] = "?";
    if (p->memory)
        snprintf(has, sizeof has, "%.1f", dl_gib(p->memory));
    int err = dl_str_addf(out, "%-*.*s %5.1f%% %6u %6u %7u %7.2f %6.2f %6.2f %7s %8.2f %8.2f %8.2f", width, width,
                          in->nodes[i].name, p->share * 100, p->slice.n_heads, p->slice.n_ffn, p->slice.n_vocab,
                          dl_gib(p->weight_bytes), dl_gib(p->kv_bytes), dl_gib(p->act_bytes), has,
                          ms(p->ns[DL_PHASE_ATTN]), ms(p->ns[DL_PHASE_FFN]), ms(p->ns[DL_PHASE_VOCAB]));
    if (!err && in->nodes[i].device && *in->nodes[i].device)
        err = dl_str_addf(out, "  %.60s", in->nodes[i].device);
    return err ? err : dl_str_addz(out, "\n");
}

/* "nas" or "nas, pi4 and pi5" */
static int slow_names(const struct dl_split_input *in, const struct dl_split *s, struct dl_str *out)
{
    int err = DL_OK;
    uint32_t named = 0;
    for (uint32_t i = 0; i < s->n_nodes && !err; i++) {
        if (!s->parts[i].slows)
            continue;
        named++;
        err = dl_str_addf(out, "%s%.60s", named == 1 ? "" : named == s->n_slow ? " and " : ", ", in->nodes[i].name);
    }
    return err;
}

int dl_split_advice(const struct dl_split_input *in, const struct dl_split *s, struct dl_str *out)
{
    if (!s->n_slow)
        return DL_OK;
    int err = dl_str_addz(out, "fewer nodes would be faster: without ");
    if (!err)
        err = slow_names(in, s, out);
    return err ? err
               : dl_str_addf(out, " about %.1f tok/s instead of %.1f: leave %s out", s->tok_s_without, s->tok_s,
                             s->n_slow == 1 ? "it" : "them");
}

static int network(const struct dl_split_input *in, const struct dl_split *s, struct dl_str *out)
{
    const uint32_t sums = 2 * in->h->n_layers;
    const struct dl_split_part *root = &s->parts[0];
    static const char *const names[] = {[DL_COLLECTIVE_ONE_SHOT] = "one-shot",
                                        [DL_COLLECTIVE_HALVES] = "halves",
                                        [DL_COLLECTIVE_RS] = "reduce-scatter"};
    const uint64_t sent = s->collective == DL_COLLECTIVE_RS ? root->sent_rs : root->sent_one_shot;
    char halves[40] = "";
    if (s->halves_ns > 0)
        snprintf(halves, sizeof halves, "halves %.2f, ", ms(s->halves_ns));
    return dl_str_addf(
        out,
        "network        latency %.3f ms, %.1f MB/s; %u sums per token: %s (one-shot %.2f ms, "
        "%sreduce-scatter %.2f ms)\n"
        "bytes/token    root sends %.1f kB as %s, and receives about as much (one-shot %.1f, reduce-scatter "
        "%.1f)\n",
        ms(in->link.latency_ns), in->link.bytes_per_s / 1e6, sums, names[s->collective], ms(s->one_shot_ns), halves,
        ms(s->rs_ns), (double)sent / 1e3, dl_type_info(dl_wire_type(in->h, in->wire))->name,
        (double)root->sent_one_shot / 1e3, (double)root->sent_rs / 1e3);
}

int dl_split_text(const struct dl_split_input *in, const struct dl_split *s, struct dl_str *out)
{
    int width = 4;
    for (uint32_t i = 0; i < s->n_nodes; i++)
        width = DL_MAX(width, (int)DL_MIN(strlen(in->nodes[i].name), 40));
    int err = dl_str_addf(
        out, "%-*s  share  heads    ffn   vocab weights  cache   work free/GiB  attn/ms   ffn/ms vocab/ms\n", width,
        "node");
    for (uint32_t i = 0; i < s->n_nodes && !err; i++)
        err = row(in, s, i, width, out);
    if (!err && s->n_nodes > 1)
        err = network(in, s, out);
    const double *c = s->compute_ns;
    double compute = c[DL_PHASE_ATTN] + c[DL_PHASE_FFN] + c[DL_PHASE_VOCAB];
    if (!err)
        err =
            dl_str_addf(out,
                        "per token      %.2f ms: compute %.2f (attention %.2f, FFN %.2f, output %.2f), exchange %.2f\n"
                        "predicted      %.1f tok/s at position %u",
                        ms(compute + s->exchange_ns), ms(compute), ms(c[DL_PHASE_ATTN]), ms(c[DL_PHASE_FFN]),
                        ms(c[DL_PHASE_VOCAB]), ms(s->exchange_ns), s->tok_s, s->at_pos);
    if (!err && s->prefill_tok_s > 0)
        err = dl_str_addf(out, ", prompts at %.0f tok/s", s->prefill_tok_s);
    return err ? err : dl_str_addf(out, "; context %u\n", s->ctx);
}
