/* server/websocket.c: see websocket.h. */
#include "server/websocket.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <wslay/wslay.h>

#include "base/utf8.h"
#include "server/codec.h"

#define CONTROL_BYTES 125
/* Frames that make no progress (pings, pongs, empty fragments): so many at once, and so many a second. */
#define IDLE_FRAMES        1000
#define IDLE_FRAMES_SECOND 200
#define KEPT_BYTES         ((size_t)4 << 10) /* of a buffer between messages */
#define LEAST_COMPRESSED   64u               /* shorter messages gain nothing */
/* A message may not inflate to more than this and so many times what came: JSON stays far below, and whoever sends
 * a kilobyte to have a megabyte read is no friend. */
#define FREE_INFLATED ((size_t)64 << 10)
#define MOST_INFLATED 100u

struct websocket {
    websocket_options options;
    wslay_frame_context_ptr frames;
    websocket_deflate deflate;
    const uint8_t *input; /* the rest of what is being fed */
    size_t input_size;
    buffer out;

    /* the message that comes in */
    buffer message;
    size_t checked; /* bytes of it that are UTF-8 */
    uint64_t came;  /* bytes of its payloads, as they came */
    int in_message, is_text, is_compressed;

    /* the frame that comes in */
    int in_frame, is_control, opcode, is_final;
    uint64_t frame_left;
    uint8_t control[CONTROL_BYTES];
    size_t n_control;

    int over_code;
    int idle_frames; /* left */

    /* as of websocket_tick */
    int heard, pinged;
    uint64_t heard_ns, moved_ns;
    size_t moved_bytes;
};

/* ---- out ---- */

static ssize_t put_bytes(const uint8_t *data, size_t size, int flags, void *user)
{
    (void)flags;
    websocket *w = user;
    return buffer_add(&w->out, data, size) ? -1 : (ssize_t)size;
}

/* Memory that is out ends it without a word. */
static void send_frame(websocket *w, uint8_t opcode, uint8_t reserved, const void *data,
                       size_t size)
{
    struct wslay_frame_iocb frame = {.fin = 1,
                                     .rsv = reserved,
                                     .opcode = opcode,
                                     .payload_length = size,
                                     .data = data,
                                     .data_length = size};
    if (wslay_frame_send(w->frames, &frame) != (ssize_t)size && !w->over_code)
        w->over_code = WEBSOCKET_INTERNAL;
}

void websocket_send(websocket *w, int is_text, const void *data, size_t size)
{
    uint8_t opcode = is_text ? WSLAY_TEXT_FRAME : WSLAY_BINARY_FRAME;
    if (w->over_code)
        return;
    if (!w->deflate.terms.agreed || size < LEAST_COMPRESSED) {
        send_frame(w, opcode, WSLAY_RSV_NONE, data, size);
        return;
    }
    buffer packed;
    buffer_init(&packed, SIZE_MAX);
    if (websocket_deflate_deflate(&w->deflate, data, size, &packed))
        w->over_code = WEBSOCKET_INTERNAL;
    else
        send_frame(w, opcode, WSLAY_RSV1_BIT, packed.data, packed.size);
    buffer_release(&packed);
}

static void send_close(websocket *w, int code, const void *reason, size_t size)
{
    uint8_t payload[CONTROL_BYTES] = {(uint8_t)(code >> 8), (uint8_t)code};
    if (size > sizeof payload - 2)
        size = sizeof payload - 2;
    if (size)
        memcpy(payload + 2, reason, size);
    send_frame(w, WSLAY_CONNECTION_CLOSE, WSLAY_RSV_NONE, payload, size + 2);
}

void websocket_shut(websocket *w, websocket_code code, const char *reason)
{
    if (w->over_code)
        return;
    send_close(w, (int)code, reason, strlen(reason));
    w->over_code = (int)code;
}

/* ---- control frames ---- */

/* RFC 6455, 7.4, and the codes registered since. */
static int may_be_sent(int code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
           (code >= 3000 && code <= 4999);
}

static void take_close(websocket *w)
{
    int code = w->n_control >= 2 ? w->control[0] << 8 | w->control[1] : WEBSOCKET_NO_CODE;
    if (w->n_control == 1 || (w->n_control && !may_be_sent(code))) {
        websocket_shut(w, WEBSOCKET_PROTOCOL, "the close frame's code is none that may be sent");
    } else if (w->n_control && !utf8_valid(w->control + 2, w->n_control - 2)) {
        websocket_shut(w, WEBSOCKET_NOT_UTF8, "the close frame's reason is not UTF-8");
    } else if (!w->n_control) {
        send_frame(w, WSLAY_CONNECTION_CLOSE, WSLAY_RSV_NONE, NULL, 0);
        w->over_code = code;
    } else {
        send_close(w, code, NULL, 0);
        w->over_code = code;
    }
}

/* 0: it was too much, and is over. */
static int draw_idle(websocket *w)
{
    if (w->idle_frames-- > 0)
        return 1;
    websocket_shut(w, WEBSOCKET_POLICY, "too many frames that say nothing");
    return 0;
}

static void end_control(websocket *w)
{
    if (w->opcode == WSLAY_CONNECTION_CLOSE)
        take_close(w);
    else if (draw_idle(w) && w->opcode == WSLAY_PING)
        send_frame(w, WSLAY_PONG, WSLAY_RSV_NONE, w->control, w->n_control);
    w->n_control = 0;
}

/* ---- messages ---- */

/* Looks through what is new of a text, so that it fails with the first byte that cannot be right. */
static int check_text(websocket *w, int at_end)
{
    const uint8_t *text = (const uint8_t *)w->message.data;
    size_t at = w->checked, size = w->message.size;
    while (at < size) {
        uint64_t eight;
        if (size - at >= 8) {
            memcpy(&eight, text + at, 8);
            if (!(eight & 0x8080808080808080u)) {
                at += 8;
                continue;
            }
        }
        int length = utf8_length(text + at, size - at);
        if (length == -1 || (length < 0 && at_end)) {
            websocket_shut(w, WEBSOCKET_NOT_UTF8, "a text is not UTF-8");
            return 0;
        }
        if (length < 0)
            break;
        at += (size_t)length;
    }
    w->checked = at;
    return 1;
}

static int fail_message(websocket *w, realm_status status)
{
    if (status == REALM_TOO_LARGE)
        websocket_shut(w, WEBSOCKET_TOO_BIG, "the message is larger than is taken here");
    else if (status == REALM_NO_MEMORY)
        websocket_shut(w, WEBSOCKET_INTERNAL, "the host is out of memory");
    else
        websocket_shut(w, WEBSOCKET_NOT_UTF8, "the message is not compressed as it says");
    return 0;
}

static size_t inflated_limit(const websocket *w)
{
    uint64_t most = FREE_INFLATED + MOST_INFLATED * w->came;
    return most < w->options.message_bytes ? (size_t)most : w->options.message_bytes;
}

/* 0: it is over. */
static int take_data(websocket *w, const uint8_t *data, size_t size, int at_end)
{
    realm_status status = REALM_OK;
    w->came += size;
    if (w->is_compressed)
        status = websocket_deflate_inflate(&w->deflate, data, size, at_end, &w->message,
                                           inflated_limit(w));
    else if (size)
        status = buffer_add(&w->message, data, size);
    if (status)
        return fail_message(w, status);
    return !w->is_text || check_text(w, at_end);
}

static void drop_message(websocket *w)
{
    w->in_message = 0;
    w->checked = 0;
    w->came = 0;
    if (w->message.capacity > KEPT_BYTES)
        buffer_release(&w->message);
    else
        buffer_clear(&w->message);
}

static void end_data(websocket *w)
{
    if (!w->is_final)
        return;
    if (take_data(w, NULL, 0, 1))
        w->options.on_message(w->options.context, w->is_text, buffer_text(&w->message),
                              w->message.size);
    drop_message(w);
}

/* ---- frames ---- */

static const char *wrong_with(const websocket *w, const struct wslay_frame_iocb *f)
{
    int starts = f->opcode == WSLAY_TEXT_FRAME || f->opcode == WSLAY_BINARY_FRAME;
    int is_control = f->opcode >= WSLAY_CONNECTION_CLOSE && f->opcode <= WSLAY_PONG;
    if (!f->mask)
        return "a client's frames must be masked";
    if (!starts && !is_control && f->opcode != WSLAY_CONTINUATION_FRAME)
        return "the opcode is reserved";
    if (f->rsv && (f->rsv != WSLAY_RSV1_BIT || !starts || !w->deflate.terms.agreed))
        return "a reserved bit is set";
    if (starts && w->in_message)
        return "a message begins inside of another";
    if (f->opcode == WSLAY_CONTINUATION_FRAME && !w->in_message)
        return "a message goes on that has not begun";
    return NULL;
}

static int begin_frame(websocket *w, const struct wslay_frame_iocb *f)
{
    const char *wrong = wrong_with(w, f);
    if (wrong) {
        websocket_shut(w, WEBSOCKET_PROTOCOL, wrong);
        return 0;
    }
    w->in_frame = 1;
    w->opcode = f->opcode;
    w->is_final = f->fin;
    w->is_control = wslay_is_ctrl_frame(f->opcode);
    w->frame_left = f->payload_length;
    if (!w->in_message)
        w->moved_ns = 0;
    if (w->is_control)
        return 1;
    if (f->opcode != WSLAY_CONTINUATION_FRAME) {
        w->in_message = 1;
        w->is_text = f->opcode == WSLAY_TEXT_FRAME;
        w->is_compressed = wslay_get_rsv1(f->rsv);
    }
    if (f->payload_length > w->options.message_bytes - w->came)
        return fail_message(w, REALM_TOO_LARGE);
    return f->payload_length || f->fin || draw_idle(w);
}

static void take_piece(websocket *w, const struct wslay_frame_iocb *f)
{
    if (!w->in_frame && !begin_frame(w, f))
        return;
    w->frame_left -= f->data_length;
    if (w->is_control) {
        memcpy(w->control + w->n_control, f->data, f->data_length);
        w->n_control += f->data_length;
    } else if (f->data_length && !take_data(w, f->data, f->data_length, 0)) {
        return;
    }
    if (w->frame_left)
        return;
    w->in_frame = 0;
    if (w->is_control)
        end_control(w);
    else
        end_data(w);
}

static ssize_t give_bytes(uint8_t *to, size_t room, int flags, void *user)
{
    (void)flags;
    websocket *w = user;
    size_t part = w->input_size < room ? w->input_size : room;
    if (!part)
        return -1;
    memcpy(to, w->input, part);
    w->input += part;
    w->input_size -= part;
    return (ssize_t)part;
}

void websocket_feed(websocket *w, const void *data, size_t size)
{
    w->input = data;
    w->input_size = size;
    w->heard = 1;
    w->moved_bytes += size;
    while (!w->over_code) {
        struct wslay_frame_iocb piece = {0};
        ssize_t got = wslay_frame_recv(w->frames, &piece);
        if (got == WSLAY_ERR_WANT_READ)
            break;
        if (got < 0)
            websocket_shut(w, WEBSOCKET_PROTOCOL, "a frame is malformed");
        else
            take_piece(w, &piece);
    }
    if (w->over_code)
        drop_message(w);
    websocket_assert(w);
}

/* ---- time ---- */

static void check_alive(websocket *w, uint64_t now_ns)
{
    uint64_t ping_ns = (uint64_t)w->options.ping_ms * 1000000u;
    if (w->heard || !w->heard_ns) {
        w->heard = w->pinged = 0;
        w->heard_ns = now_ns;
    } else if (now_ns - w->heard_ns > 3 * ping_ns) {
        websocket_shut(w, WEBSOCKET_GOING_AWAY, "nothing was heard for too long");
    } else if (now_ns - w->heard_ns > ping_ns && !w->pinged) {
        w->pinged = 1;
        send_frame(w, WSLAY_PING, WSLAY_RSV_NONE, NULL, 0);
    }
}

static void check_message(websocket *w, uint64_t now_ns)
{
    if (!w->moved_ns || w->moved_bytes >= CODEC_LEAST_BODY) {
        w->moved_ns = now_ns;
        w->moved_bytes = 0;
    } else if (now_ns - w->moved_ns > (uint64_t)w->options.message_ms * 1000000u) {
        websocket_shut(w, WEBSOCKET_POLICY, "a message came too slowly");
    }
}

void websocket_tick(websocket *w, uint64_t now_ns)
{
    w->idle_frames += IDLE_FRAMES_SECOND;
    if (w->idle_frames > IDLE_FRAMES)
        w->idle_frames = IDLE_FRAMES;
    if (!w->over_code)
        check_alive(w, now_ns);
    if (!w->over_code && (w->in_message || w->in_frame))
        check_message(w, now_ns);
}

/* ---- the rest ---- */

int websocket_is_over(const websocket *w)
{
    return w->over_code != 0;
}

int websocket_over_code(const websocket *w)
{
    return w->over_code;
}

buffer *websocket_out(websocket *w)
{
    return &w->out;
}

void websocket_set_limit(websocket *w, size_t message_bytes)
{
    w->options.message_bytes = message_bytes;
}

void websocket_rest(websocket *w)
{
    websocket_deflate_rest(&w->deflate);
    if (!w->out.size)
        buffer_release(&w->out);
}

void websocket_assert(const websocket *w)
{
    assert(w->in_message || !w->message.size);
    assert(w->checked <= w->message.size);
    assert(w->n_control <= CONTROL_BYTES && (w->in_frame || !w->n_control));
    (void)w;
}

websocket *websocket_open(const websocket_options *options)
{
    static const struct wslay_frame_callbacks callbacks = {.send_callback = put_bytes,
                                                           .recv_callback = give_bytes};
    websocket *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    if (wslay_frame_context_init(&w->frames, &callbacks, w)) {
        free(w);
        return NULL;
    }
    w->options = *options;
    w->idle_frames = IDLE_FRAMES;
    websocket_deflate_init(&w->deflate, &options->deflate);
    buffer_init(&w->message, SIZE_MAX);
    buffer_init(&w->out, SIZE_MAX);
    return w;
}

void websocket_close(websocket *w)
{
    if (!w)
        return;
    websocket_deflate_release(&w->deflate);
    wslay_frame_context_free(w->frames);
    buffer_release(&w->message);
    buffer_release(&w->out);
    free(w);
}
