/* A VNC client that others wrote (libvncclient), without a window: PORT ENCODINGS.
 *
 * It reads names of files from standard input. Each has a picture, a word of 0x00RRGGBB for
 * each pixel, and when the client sees exactly that it says "seen". What else it is told it
 * says at once: "size W H" and "cursor X Y W H OPAQUE SUM". */

#include <rfb/rfbclient.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static rfbBool resized(rfbClient *client)
{
    free(client->frameBuffer);
    client->frameBuffer = calloc((size_t)client->width * client->height, 4);
    printf("size %d %d\n", client->width, client->height);
    fflush(stdout);
    return client->frameBuffer != NULL;
}

/* OPAQUE counts the pixels that are drawn; SUM is of their colours. */
static void shaped(rfbClient *client, int x, int y, int width, int height, int bytes)
{
    uint32_t opaque = 0, sum = 0;
    for (int at = 0; at < width * height; at++) {
        uint32_t pixel;
        memcpy(&pixel, client->rcSource + at * bytes, 4);
        if (client->rcMask[at]) {
            opaque++;
            sum += pixel & 0xFFFFFF;
        }
    }
    printf("cursor %d %d %d %d %u %u\n", x, y, width, height, opaque, sum);
    fflush(stdout);
}

/* Whether the picture in the file is what is seen. */
static int sees(const rfbClient *client, const uint32_t *wanted, size_t count)
{
    const uint32_t *pixels = (const uint32_t *)client->frameBuffer;
    if ((size_t)client->width * client->height != count)
        return 0;
    for (size_t at = 0; at < count; at++)
        if ((pixels[at] & 0xFFFFFF) != wanted[at])
            return 0;
    return 1;
}

static uint32_t *load(const char *path, size_t *count)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        exit(2);
    fseek(file, 0, SEEK_END);
    *count = (size_t)ftell(file) / 4;
    rewind(file);
    uint32_t *words = malloc(*count * 4);
    if (!words || fread(words, 4, *count, file) != *count)
        exit(2);
    fclose(file);
    return words;
}

int main(int count, char **words)
{
    char path[4096];
    if (count != 3)
        return 2;
    rfbEnableClientLogging = FALSE;
    rfbClient *client = rfbGetClient(8, 3, 4);
    client->MallocFrameBuffer = resized;
    client->GotCursorShape = shaped;
    client->canHandleNewFBSize = TRUE;
    client->appData.useRemoteCursor = TRUE;
    client->appData.encodingsString = words[2];
    client->appData.enableJPEG = FALSE;
    client->appData.compressLevel = 1;
    client->format.redShift = 16;
    client->format.greenShift = 8;
    client->format.blueShift = 0;
    client->serverHost = strdup("127.0.0.1");
    client->serverPort = atoi(words[1]);
    /* Whatever hangs ends by this. */
    alarm(120);
    if (!rfbInitClient(client, NULL, NULL))
        return 3;
    while (fgets(path, sizeof path, stdin)) {
        size_t wanted_count;
        path[strcspn(path, "\n")] = 0;
        uint32_t *wanted = load(path, &wanted_count);
        while (!sees(client, wanted, wanted_count)) {
            int ready = WaitForMessage(client, 500000);
            if (ready < 0 || (ready > 0 && !HandleRFBServerMessage(client)))
                return 4;
        }
        free(wanted);
        puts("seen");
        fflush(stdout);
    }
    rfbClientCleanup(client);
    return 0;
}
