// One training step of gated networks, each computed in a CPU's caches from its tokens to the
// gradients of all its weights.
//
// rnn/native/network.py calls rnn_step; see it for the layout of the arrays. K is the number of
// networks, B the number of streams, n the state size, V the vocabulary size, P the size of the
// flat values of all networks.
//
// Streams are independent but for the sums over them in the gradients of the weights. A network is
// therefore computed in blocks of a few streams whose intermediate results stay in the first and
// second cache. Networks are divided among threads; where that would leave threads without work, the
// streams of each are, and every part has gradients of its own, which are added at the end.

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "layer.h"

// Most streams of a block. More use a packed weight for longer, fewer stay in the second cache.
#ifndef BLOCK_STREAMS
enum { BLOCK_STREAMS = 128 };
#endif

typedef struct {
    int64_t count, layers, n, vocabulary, streams;  // K, layers, n, V, B
    int64_t size;                                   // P
    int64_t threads, parts;                         // parts of the streams of a network
    int64_t most_packed;                            // most of the networks' packed_size
    int64_t scratch_size;                           // rnn_scratch_size
    const Network *networks;                        // (K)
    const float *weights;                           // (P)
    float *grads;                                   // (P); NULL without a backward pass
    float *part_grads;                              // (parts − 1, P)
    float *const *states, *const *next_states;      // (layers) of (K, B, n)
    const int64_t *tokens, *targets;                // (B)
    float *logits;                                  // (K, B, V); NULL with a backward pass
    float *losses;                                  // (K, B); NULL without a backward pass
    Number *packed;                                 // (K, most_packed) if parts > 1
    Number *scratch;                                // (threads, scratch_size)
} Step;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Return the Numbers of memory that each thread needs.
int64_t rnn_scratch_size(const Step *step)
{
    int64_t n = row_stride(step->n), twice = row_stride(2 * step->n);
    int64_t vocabulary = row_stride(step->vocabulary), widest = vocabulary > twice ? vocabulary : twice;
    int64_t per_layer = 9 * n + 2 * twice, gradients = 5 * n + 2 * twice;
    int64_t inputs = 3 * n + twice;
    int64_t block = BLOCK_STREAMS * (inputs + per_layer * step->layers + gradients + vocabulary);
    int64_t forms = numbers(2) == 2 ? 1 : 3;  // a matrix, and its forms as a factor
    return round_up(forms * block + vocabulary + 2 * (step->n + 1) * widest + 64, 64) + round_up(step->most_packed, 64);
}

// Streams of a block: of the number of streams alone, so that threads do not change the sums.
static int64_t block_size(int64_t streams)
{
    int64_t half = (streams + 1) / 2;
    return half < 32 ? 32 : least(half, BLOCK_STREAMS);
}

// Return the number of blocks, into which the streams of a network can be divided as parts.
int64_t rnn_blocks(int64_t streams)
{
    int64_t size = block_size(streams);
    return (streams + size - 1) / size;
}

int rnn_tile_columns(void) { return TILE_COLUMNS; }

// ------------------------------------------------------------------------------ packed weights

// Pack the weight of one of a network's maps, the head or one of those of its layers in turn, for
// its product and for the gradient of its input.
static void pack_one(
    const Step *step, const Network *network, int64_t index, Number *packed, Number *scratch)
{
    const Map *map = index == 0 ? &network->head : (const Map *)network->layers + (index - 1);
    if (!has(map))
        return;
    int64_t n = step->n, outputs = map->outputs, along = numbers(outputs);
    for (int64_t part = 0; part * n < map->inputs; part++) {
        Number *next = scratch;
        Rows weight = rows_of(
            &next, (float *)step->weights + map->weight + part * n * outputs, n, outputs);
        round_rows(n, outputs, weight);
        pack(numbers(n), outputs, weight.across,
            packed + map->packed + part * packed_size(numbers(n), outputs));
        if (step->grads != NULL)
            pack_transposed(n, along, weight.along, weight.along_stride,
                packed + map->transposed + part * packed_size(along, n));
    }
}

// ------------------------------------------------------------------------------ a block of streams

// Replace the logits of a stream by the gradient of its loss, times `scale`; return the loss. The
// greatest and the sum are taken in SUMS parts, which the compiler computes side by side.
static float cross_entropy(float *logits, int64_t vocabulary, int64_t target, float scale)
{
    enum { SUMS = 32 };
    int64_t whole = vocabulary / SUMS * SUMS;
    float greatest_of[SUMS], sum_of[SUMS], greatest = logits[0], sum = 0.0f;
    for (int i = 0; i < SUMS; i++) {
        greatest_of[i] = logits[0];
        sum_of[i] = 0.0f;
    }
    for (int64_t j = 0; j < whole; j += SUMS)
        for (int i = 0; i < SUMS; i++)
            greatest_of[i] = logits[j + i] > greatest_of[i] ? logits[j + i] : greatest_of[i];
    for (int i = 0; i < SUMS; i++)
        greatest = greatest_of[i] > greatest ? greatest_of[i] : greatest;
    for (int64_t j = whole; j < vocabulary; j++)
        greatest = logits[j] > greatest ? logits[j] : greatest;
    float target_logit = logits[target] - greatest;
    for (int64_t j = 0; j < whole; j += SUMS)
        for (int i = 0; i < SUMS; i++) {
            logits[j + i] = fast_exp(logits[j + i] - greatest);
            sum_of[i] += logits[j + i];
        }
    for (int i = 0; i < SUMS; i++)
        sum += sum_of[i];
    for (int64_t j = whole; j < vocabulary; j++) {
        logits[j] = fast_exp(logits[j] - greatest);
        sum += logits[j];
    }
    float factor = scale / sum;
    for (int64_t j = 0; j < vocabulary; j++)
        logits[j] *= factor;
    logits[target] -= scale;
    return logf(sum) - target_logit;
}

// Find the different tokens among the streams' and write them to `different`; return their count.
static int64_t find_different(
    const int64_t *tokens, int64_t streams, int32_t *places, int32_t *index, int64_t *different)
{
    int64_t count = 0;
    for (int64_t b = 0; b < streams; b++) {
        // The place of a token that has none yet is any number: it is right if the token is there.
        int32_t place = places[tokens[b]];
        if (place < 0 || place >= count || different[place] != tokens[b]) {
            place = places[tokens[b]] = (int32_t)count;
            different[count++] = tokens[b];
        }
        index[b] = place;
    }
    return count;
}

// Write the embeddings of tokens to x.
static void embed(
    const Block *block, const Network *network, const int64_t *tokens, int64_t count, Rows x)
{
    const float *bias = block->weights + network->embedding.bias;
    for (int64_t b = 0; b < count; b++) {
        const float *row = block->weights + network->embedding.weight + tokens[b] * block->n;
        for (int64_t j = 0; j < block->n; j++)
            ROW(x, b)[j] = row[j] + bias[j];
    }
    round_rows(count, block->n, x);
}

// Add the gradients dx of the streams' inputs to those of the different tokens' rows, and these to
// the gradients of the embedding.
static void embedding_grads(
    const Block *block, const Network *network, const Repeated *among, const int64_t *different,
    Rows dx)
{
    for (int64_t b = 0; b < block->streams; b++) {
        float *row = ROW(among->grads, among->index[b]);
        for (int64_t j = 0; j < block->n; j++)
            row[j] += ROW(dx, b)[j];
    }
    add_sum(among->count, block->n, among->grads, block->grads + network->embedding.bias);
    for (int64_t u = 0; u < among->count; u++) {
        float *row = block->grads + network->embedding.weight + different[u] * block->n;
        for (int64_t j = 0; j < block->n; j++)
            row[j] += ROW(among->grads, u)[j];
    }
}

// Take memory for the results of layer l of network k, for the block's streams from `first` on.
static Activations take_activations(
    const Step *step, const Block *block, int64_t k, int64_t l, int64_t first, Number **next)
{
    int64_t n = block->n, streams = block->streams, place = (k * step->streams + first) * n;
    return (Activations){
        .h = rows_of(next, step->states[l] + place, streams, n),
        .u = rows_of(next, step->next_states[l] + place, streams, n),
        .i = take_rows(next, streams, 2 * n),
        .c = take_rows(next, streams, 2 * n),
        .candidate = take_rows(next, streams, n),
        .z = take_rows(next, streams, n),
        .mixed = take_rows(next, streams, n),
        .f = take_rows(next, streams, n),
        .o = take_rows(next, streams, n),
        .gate = take_rows(next, streams, n),
        .y = take_rows(next, streams, n),
    };
}

// Add the gradients of all weights but the embedding, and return those of the first layer's input.
static Rows block_backward(
    const Step *step, const Network *network, const Block *block, const Activations *layers,
    Rows logits, Number *next)
{
    int64_t n = block->n, streams = block->streams;
    Gradients d = {
        .y = take_rows(&next, streams, n),
        .x = take_rows(&next, streams, n),
        .u = take_rows(&next, streams, n),
        .previous = take_rows(&next, streams, n),
        .o = take_rows(&next, streams, n),
        .c = take_rows(&next, streams, 2 * n),
        .gate = take_rows(&next, streams, 2 * n),
    };
    round_rows(streams, step->vocabulary, logits);
    bias_grad(block, &network->head, logits);
    clear(streams, n, d.x);
    part_grads(block, &network->head, 0, layers[step->layers - 1].y, logits, d.x);
    for (int64_t l = step->layers - 1; l >= 0; l--) {
        Rows d_output = d.x;
        d.x = d.y;
        d.y = d_output;
        layer_backward(block, network, network->layers + l, layers + l, &d);
        if (!network->output_depends_on_input)
            break;  // d.x is zero, and so is every gradient of the layers below
    }
    return d.x;
}

// Compute the streams of network k from `first` on.
static void block_step(const Step *step, int64_t k, int64_t first, const Block *block, Number *next)
{
    const Network *network = step->networks + k;
    const int64_t *tokens = step->tokens + first;
    int64_t vocabulary = step->vocabulary, row = k * step->streams + first;
    int64_t n = block->n, streams = block->streams;
    Activations layers[step->layers];
    Rows x = take_rows(&next, streams, n);
    int32_t *places = (int32_t *)next, index[BLOCK_STREAMS];
    int64_t different[BLOCK_STREAMS];
    next += round_up(vocabulary, 16);
    int64_t count = find_different(tokens, streams, places, index, different);
    Repeated among = {
        .count = count,
        .index = index,
        .rows = take_rows(&next, count, n),
        .grads = take_rows(&next, count, n),
        .products = take_rows(&next, count, 2 * n),
    };
    if (4 * count <= 3 * streams) {  // else too few repeat for their products to be worth sharing
        embed(block, network, different, count, among.rows);
        for (int64_t b = 0; b < streams; b++)
            memcpy(ROW(x, b), ROW(among.rows, index[b]), n * sizeof(float));
        x.among = &among;
    } else {
        embed(block, network, tokens, streams, x);
    }
    for (int64_t l = 0; l < step->layers; l++) {
        layers[l] = take_activations(step, block, k, l, first, &next);
        layers[l].x = x;
        layer_forward(block, network, network->layers + l, layers + l);
        x = layers[l].y;
    }
    if (block->grads == NULL) {
        Rows logits = {.values = step->logits + row * vocabulary, .stride = vocabulary};
        map_part(block, &network->head, 0, x, logits);
        return;
    }
    Rows logits = take_rows(&next, streams, vocabulary);
    map_part(block, &network->head, 0, x, logits);
    for (int64_t b = 0; b < streams; b++)
        step->losses[row + b] = cross_entropy(
            ROW(logits, b), vocabulary, step->targets[first + b], 1.0f / step->streams);
    clear(count, n, among.grads);
    Rows dx = block_backward(step, network, block, layers, logits, next);
    embedding_grads(block, network, &among, different, dx);
}

// ------------------------------------------------------------------------------ all networks

static float *grads_of(const Step *step, int64_t part)
{
    return part ? step->part_grads + (part - 1) * step->size : step->grads;
}

// Compute one part of the streams of network k, and the gradients of the part.
static void part_step(const Step *step, int64_t k, int64_t part, const Number *packed, Number *scratch)
{
    const Network *network = step->networks + k;
    int64_t size = block_size(step->streams), blocks = rnn_blocks(step->streams);
    float *grads = step->grads ? grads_of(step, part) : NULL;
    if (grads)
        memset(grads + network->begin, 0, (network->end - network->begin) * sizeof(float));
    for (int64_t block = blocks * part / step->parts; block < blocks * (part + 1) / step->parts;
         block++) {
        int64_t first = block * size;
        Block each = {
            .n = step->n,
            .streams = least(step->streams - first, size),
            .weights = step->weights,
            .packed = packed,
            .grads = grads,
        };
        block_step(step, k, first, &each, scratch);
    }
}

// Advance all networks by one time step and, with gradients, write those of their mean losses. Return
// 0, or 1 if a token is not in the vocabulary.
int rnn_step(const Step *step)
{
    for (int64_t b = 0; b < step->streams; b++)
        if ((uint64_t)step->tokens[b] >= (uint64_t)step->vocabulary
            || (step->grads && (uint64_t)step->targets[b] >= (uint64_t)step->vocabulary))
            return 1;
    int64_t maps = 1 + MAP_COUNT * step->layers, most = step->most_packed;
    #pragma omp parallel num_threads(step->threads)
    {
        int thread = 0;
#ifdef _OPENMP
        thread = omp_get_thread_num();
#endif
        Number *scratch = step->scratch + thread * step->scratch_size;
        if (step->parts == 1) {
            Number *packed = scratch + step->scratch_size - round_up(most, 64);
            #pragma omp for schedule(dynamic)
            for (int64_t k = 0; k < step->count; k++) {
                for (int64_t index = 0; index < maps; index++)
                    pack_one(step, step->networks + k, index, packed, scratch);
                part_step(step, k, 0, packed, scratch);
            }
        } else {
            #pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < step->count * maps; i++)
                pack_one(step, step->networks + i / maps, i % maps, step->packed + i / maps * most,
                    scratch);
            #pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < step->count * step->parts; i++)
                part_step(step, i / step->parts, i % step->parts,
                    step->packed + i / step->parts * most, scratch);
            for (int64_t part = 1; step->grads && part < step->parts; part++) {
                const float *grads = grads_of(step, part);
                #pragma omp for
                for (int64_t i = 0; i < step->size; i++)
                    step->grads[i] += grads[i];
            }
        }
    }
    return 0;
}
