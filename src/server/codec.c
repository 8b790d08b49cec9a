/* server/codec.c: see codec.h: what all protocols share. */
#include "server/codec.h"

#include <time.h>

void codec_init(codec *c, const codec_table *table, const codec_options *options)
{
    c->table = table;
    c->sink = options->sink;
    c->limits = options->limits;
    if (!c->limits.head_bytes)
        c->limits.head_bytes = (size_t)32 << 10;
    if (!c->limits.headers)
        c->limits.headers = 100;
    if (!c->limits.streams)
        c->limits.streams = 128;
    if (!c->limits.message_bytes)
        c->limits.message_bytes = (size_t)16 << 20;
    if (!c->limits.body_ms)
        c->limits.body_ms = 30000;
    if (!c->limits.send_ms)
        c->limits.send_ms = 30000;
    if (!c->limits.ping_ms)
        c->limits.ping_ms = 30000;
    if (!c->limits.quiet_ms)
        c->limits.quiet_ms = 75000;
    c->on_output = options->on_output;
    c->connection = options->connection;
    c->secure = options->secure;
}

const char *codec_reason(int status)
{
    switch (status) {
    case 100: return "Continue";
    case 101: return "Switching Protocols";
    case 200: return "OK";
    case 201: return "Created";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 411: return "Length Required";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 426: return "Upgrade Required";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    case 505: return "HTTP Version Not Supported";
    default: return "";
    }
}

const char *codec_date(void)
{
    static char text[40];
    static time_t at;
    time_t now = time(NULL);
    if (now != at) {
        struct tm utc;
        gmtime_r(&now, &utc);
        strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc);
        at = now;
    }
    return text;
}
