// SPDX-License-Identifier: Apache-2.0
// blockwise-attention: exact attention in chunks, or each block of queries reads one block of keys.
//
// Paper    Rabe and Staats 2021, arXiv:2112.05682 (chunks); Qiu et al. 2019, arXiv:1911.02972 (blocks by permutation)
// Formula  full: all keys, in chunks of queries and keys with a running maximum and sum
//          block t = [floor(t Nk / num_blocks), floor((t + 1) Nk / num_blocks)); S(i) = keys of block pi_h(t), t that of p_i
//          diagonal: pi(t) = t; permutation: pi_h(t) = (t + block_shifts[h]) mod num_blocks, or permutations[h][t]
// Cost     full O(Nq * Nk * D), patterns O(Nq * Nk / num_blocks * D); memory: the output and one tile per thread
// Differs  lengths need not divide anything; hidden keys are left out instead of getting a large negative score

#include "attend/author/by_head.hpp"
#include "attend/author/pattern.hpp"

namespace attend::ATTEND_ISA {
namespace {

enum Kind : int32_t { full, diagonal, permutation };

struct Options {
    int64_t query_chunk, key_chunk, num_blocks;
    IntList block_shifts, permutations;
    int32_t kind;
};

constexpr double longest = 2147483647.0;
constexpr const char* name = "blockwise-attention";
constexpr const char* kinds[] = {"full", "diagonal", "permutation", nullptr};
constexpr OptionRow option_table[] = {
    option_int(ATTEND_FIELD(query_chunk), "0", {0, longest}, "most queries of a tile; 0: the engine chooses"),
    option_int(ATTEND_FIELD(key_chunk), "0", {0, longest}, "most keys of a tile; 0: the engine chooses"),
    option_enum(offsetof(Options, kind), "pattern", "\"full\"", kinds,
                "full: all keys; diagonal: a block of queries reads the same block of keys; permutation: another one"),
    option_int(ATTEND_FIELD(num_blocks), "1", {1, longest}, "blocks that the sequence is cut into"),
    option_row(ATTEND_TYPE_INT_LIST, 0, "block_shifts", nullptr, {-9007199254740992.0, 9007199254740992.0}, nullptr,
               "blocks that each query head looks ahead, round the end; default: the number of the head",
               Field::integer_list, offsetof(Options, block_shifts), nullptr),
    option_int_rows(ATTEND_FIELD(permutations), {0, longest},
                    "for each query head the key block of every query block; wins over block_shifts"),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    ATTEND_MASK_PORTS,
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

// Key block of each query block.
int64_t target(const Options& options, int64_t head, int64_t block) {
    const int64_t n = options.num_blocks;
    if (options.kind != permutation) return block;
    if (options.permutations.count > 0) return options.permutations.items[1 + head * n + block];
    const int64_t shift = (options.block_shifts.count > 0 ? options.block_shifts.items[head] : head) % n;
    return (block + shift + n) % n;
}
void fill_table(const Options& options, int64_t head, int32_t* table) {
    for (int64_t block = 0; block < options.num_blocks; ++block)
        table[block] = static_cast<int32_t>(target(options, head, block));
}

attend_status say(Message& text, attend_error* error, const char* where) {
    return text.fail(error, ATTEND_BAD_OPTION, where);
}

// The first of n entries that is not below n or stands there a second time; n: none.
int64_t first_fault(const int64_t* row, int64_t n) {
    constexpr int64_t numbers = 16384;  // looked for at a time
    uint64_t seen[numbers / 64];
    for (int64_t low = 0; low < n; low += numbers) {
        for (uint64_t& word : seen) word = 0;
        for (int64_t at = 0; at < n; ++at) {
            if (row[at] >= n) return at;
            const int64_t bit = row[at] - low;
            if (bit < 0 || bit >= numbers) continue;
            uint64_t& word = seen[bit / 64];
            if ((word >> (bit % 64)) & 1u) return at;
            word |= uint64_t{1} << (bit % 64);
        }
    }
    return n;
}

attend_status check_permutations(const Options& options, const attend_plan_desc& desc, attend_error* error) {
    const int64_t n = options.num_blocks, rows = options.permutations.items[0];
    if (rows != desc.num_q_heads)
        return say(Message() << name << ": option \"permutations\" has " << rows << " rows; accepted: one for each of "
                             << desc.num_q_heads << " query heads",
                   error, "permutations");
    const int64_t length = rows == 0 ? n : (int64_t{options.permutations.count} - 1) / rows;
    if (length != n)
        return say(Message() << name << ": rows of option \"permutations\" have " << length
                             << " entries, which is no permutation of " << n
                             << " blocks (num_blocks); accepted: the numbers 0 to " << n - 1 << ", each once",
                   error, "permutations");
    for (int64_t head = 0; head < rows; ++head) {
        const int64_t at = first_fault(options.permutations.items + 1 + head * n, n);
        if (at < n)
            return say(Message() << name << ": row " << head << " of option \"permutations\" is no permutation: entry "
                                 << at << " is " << options.permutations.items[1 + head * n + at]
                                 << "; accepted: the numbers 0 to " << n - 1 << ", each once",
                       error, "permutations");
    }
    return ATTEND_OK;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const bool shifts = was_given(*args.values, "block_shifts"), maps = was_given(*args.values, "permutations");
    if (options.kind != permutation && (shifts || maps))
        return say(Message() << name << ": option \"" << (shifts ? "block_shifts" : "permutations")
                             << "\" is given with pattern " << kinds[options.kind]
                             << ", which does not read it; accepted: pattern permutation",
                   error, shifts ? "block_shifts" : "permutations");
    if (options.kind == full) {
        if (options.num_blocks == 1) return ATTEND_OK;
        return say(Message() << name << ": option \"num_blocks\" is " << options.num_blocks
                             << " with pattern full; accepted: 1, or pattern diagonal or permutation",
                   error, "num_blocks");
    }
    if (shifts && options.block_shifts.count != desc.num_q_heads)
        return say(Message() << name << ": option \"block_shifts\" has " << int64_t{options.block_shifts.count}
                             << " entries; accepted: one for each of " << desc.num_q_heads << " query heads",
                   error, "block_shifts");
    if (desc.kv_len > 0 && options.num_blocks > desc.kv_len)
        return say(Message() << name << ": option \"num_blocks\" is " << options.num_blocks << " for " << desc.kv_len
                             << " keys; accepted: 1 to " << desc.kv_len,
                   error, "num_blocks");
    if (maps)
        if (const attend_status status = check_permutations(options, desc, error)) return status;
    return check_plan_positions(name, desc, error);
}

// Heads of one key head that read different blocks would have to be united tile by tile, so each goes alone.
bool goes_by_head(const Options& options, const attend_plan_desc& desc) {
    return options.kind == permutation && options.num_blocks > 1 && desc.num_q_heads > desc.num_kv_heads;
}
int64_t tables(const Options& options, const attend_plan_desc& desc) {
    return options.kind == permutation && !goes_by_head(options, desc) ? desc.num_q_heads : 1;
}
int64_t block_width(const Options& options, const attend_plan_desc& desc) {
    return desc.kv_len % options.num_blocks == 0 ? desc.kv_len / options.num_blocks : 0;
}
// Tiles do not reach over the edge of a block where all are of one width.
int64_t tile_lanes(const Options& options, const attend_plan_desc& desc) {
    const int64_t chunk = options.query_chunk;
    if (options.kind == full || desc.num_kv_heads < 1) return chunk;
    const int64_t group = goes_by_head(options, desc) ? 1 : desc.num_q_heads / desc.num_kv_heads;
    const int64_t lanes = ATTEND_KERNEL(attend_pattern_query_tile)(block_width(options, desc), group);
    return chunk > 0 && (lanes == 0 || chunk < lanes) ? chunk : lanes;
}

// The term of one head, or of all whose tables follow each other.
void fill(Pattern& pattern, const Options& options, const attend_plan_desc& desc, const int32_t* table, bool by_head) {
    if (options.kind == full) {
        pattern.add(attend_pattern_all());
        return;
    }
    attend_pattern_term& map =
        pattern.add(attend_pattern_term_of(ATTEND_PATTERN_BLOCK_MAP, 0, 0, block_width(options, desc), 0, 0));
    map.even_blocks = map.num_row_blocks = options.num_blocks;
    map.blocks = table;
    map.row_stride = map.most_blocks = 1;
    map.head_stride = by_head ? options.num_blocks : 0;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    return Carve::floats(tables(options, desc) * options.num_blocks) +
           tile_workspace(goes_by_head(options, desc) ? one_head(desc) : desc, 0, tile_lanes(options, desc),
                          options.key_chunk);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    Carve carve(context);
    const int64_t heads = tables(options, desc), n = options.num_blocks;
    auto* table = reinterpret_cast<int32_t*>(carve.take(heads * n));
    const Context rest = carve.rest(context);
    TileCall call(args);
    call.problem.max_query_tile = tile_lanes(options, desc);
    call.problem.max_key_tile = options.key_chunk;
    if (options.kind == full || desc.kv_len == 0) return run_tiles(call, rest);
    if (const attend_status status = check_call_positions(name, args, context.error)) return status;
    Pattern pattern(desc);
    fill(pattern, options, desc, table, heads > 1);
    use_pattern(call.problem, pattern);
    if (!goes_by_head(options, desc)) {
        for (int64_t head = 0; head < heads; ++head) fill_table(options, head, table + head * n);
        return run_tiles(call, rest);
    }
    for (int64_t head = 0; head < desc.num_q_heads; ++head) {
        fill_table(options, head, table);
        const HeadCall one(call, args, head);
        if (const attend_status status = ATTEND_KERNEL(attend_tile_forward)(&one.problem, &rest)) return status;
    }
    return ATTEND_OK;
}

attend_status pattern(const Options& options, const PlanArgs& args, const PatternArgs& asked, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    Carve carve(context);
    auto* table = reinterpret_cast<int32_t*>(carve.take(options.num_blocks));
    fill_table(options, asked.head, table);
    Pattern keys(desc);
    fill(keys, options, desc, table, false);
    const int64_t width = options.kind == full ? 0 : block_width(options, desc);
    return answer_pattern(keys, desc, asked, false, ATTEND_KERNEL(attend_pattern_query_tile)(width, 1));
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    if (options.kind == full || desc.kv_len == 0 || desc.num_q_heads == 0)
        return softmax_cost(desc, visible_pairs(desc), cost);
    const int64_t n = options.num_blocks, keys = desc.kv_len;
    const bool causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
    double pairs = 0.0;
    for (int64_t head = 0; head < desc.num_q_heads; ++head)
        for (int64_t i = 0; i < desc.q_len; ++i) {
            const int64_t p = i + desc.causal_offset;
            if (p < 0 || p >= keys) continue;
            const int64_t block = target(options, head, ((p + 1) * n - 1) / keys);
            int64_t begin = block * keys / n, end = (block + 1) * keys / n;
            if (causal && p + 1 < end) end = p + 1;
            if (desc.window_right >= 0 && desc.window_right < end - p) end = p + desc.window_right + 1;
            if (end > (block + 1) * keys / n) end = (block + 1) * keys / n;
            if (desc.window_left >= 0 && p - desc.window_left > begin) begin = p - desc.window_left;
            if (end > begin) pairs += static_cast<double>(end - begin);
        }
    softmax_cost(desc, pairs / static_cast<double>(desc.num_q_heads), cost);
}

// Exact against full attention only where nothing is left out.
double error_bound(const Options& options, const PlanArgs&) {
    return options.kind == full || options.num_blocks == 1 ? 0.0 : no_limit;
}

}  // namespace

ATTEND_MECHANISM(
    blockwise,
    described<check, workspace, forward, pattern, cost, error_bound>(
        {.name = "blockwise-attention",
         .category = "sparse",
         .title = "Blockwise attention",
         .summary =
             "Exact attention in chunks with little memory; or, several times cheaper, every block of queries reads "
             "one block of keys.",
         .reference =
             "Rabe and Staats 2021, arXiv:2112.05682; blocks by permutation: Qiu et al. 2019, arXiv:1911.02972",
         .time = "O(n^2 d), patterns O(n^2 d / blocks)",
         .space = "O(n d)",
         .numerics = ATTEND_APPROXIMATE,
         .formula =
             "full: S = all keys, in tiles of query_chunk queries and key_chunk keys\n"
             "otherwise block t = keys floor(t Nk / num_blocks) to floor((t + 1) Nk / num_blocks) - 1,\n"
             "S = keys of block pi_h(t), t the block of the query\n"
             "diagonal: pi(t) = t; permutation: pi_h(t) = (t + block_shifts[h]) mod num_blocks, or permutations[h][t]\n"
             "causal keeps j <= p; output = softmax over S of scale * q.k, times the values",
         .cost =
             "full costs what exact attention costs, in memory for one tile per thread; patterns cost num_blocks times "
             "less. Chunk sizes never change the result, only the memory and the speed.",
         .use =
             "Take pattern full as exact attention whose tile sizes you choose yourself; flash-attention-v2 is the "
             "same "
             "with more features. Take permutation to train or run wide models cheaply, heads looking at different "
             "blocks (BlockBERT); where neighbours across block edges matter take local-attention, where some tokens "
             "matter to all bigbird-attention.",
         .example = "attend compute blockwise-attention --sequence-length 1024 --heads 4 --dim 32 --set "
                    "pattern=permutation --set num_blocks=4"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
