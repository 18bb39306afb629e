"use strict";
// A guest's screen, in a page that has the elements named below. `hello` is what is said
// first; `changed` hears why there is no picture, or nothing, and the screen's name. The
// answer ends it.
function watchScreen(hello, changed) {
  const part = (id) => document.getElementById(id);
  const [stage, canvas, state] = [part("stage"), part("screen"), part("state")];
  const [fit, full, save] = [part("fit"), part("full"), part("save")];
  const [attention, hint] = [part("attention"), part("hint")];
  const pen = canvas.getContext("2d", { alpha: false });

  // The server says something three times a second, or waits until what it sent is seen.
  const SILENCE = 900;
  let heard = performance.now();
  let connected = false;
  let lost = "";
  let drawing = Promise.resolve();
  // The connection, and whether what is done here goes to the guest.
  let socket;
  let keys = false;
  let over = false;
  let retry;

  function say(text) {
    if (state.textContent !== text) state.textContent = text;
  }

  // What is shown, and whether it is what the guest shows now.
  function show() {
    const silent = connected && performance.now() - heard > SILENCE;
    const why = lost || (silent ? "nothing is heard from linkspan" : "");
    canvas.classList.toggle("stale", why !== "");
    if (why) say("No signal: " + why);
    else if (connected) say("");
    changed(why, part("name").textContent);
  }

  function connect() {
    const scheme = location.protocol === "https:" ? "wss://" : "ws://";
    const mine = new WebSocket(scheme + location.host + "/screen");
    socket = mine;
    mine.binaryType = "arraybuffer";
    mine.onopen = () => hello.forEach((word) => mine.send(word));
    mine.onmessage = (event) => {
      heard = performance.now();
      // One after the other, as they came.
      drawing = drawing.then(() => take(mine, event.data)).catch((error) => {
        lost = String(error);
        mine.close();
        show();
      });
    };
    mine.onclose = (event) => {
      drawing = drawing.then(() => {
        if (over) return;
        connected = false;
        setKeys(false);
        // What the source said last is better than how the connection ended.
        lost = lost || event.reason || "the connection to linkspan is lost";
        show();
        if (event.code !== 1008) retry = setTimeout(connect, 1000);
      });
    };
  }

  async function take(mine, data) {
    if (over) return;
    if (typeof data === "string") {
      const said = JSON.parse(data);
      if (!("width" in said)) return;
      connected = true;
      lost = said.lost || "";
      part("name").textContent = said.name;
      part("size").textContent = lost ? "" : said.width + " × " + said.height;
      if (!lost && (canvas.width !== said.width || canvas.height !== said.height)) {
        [canvas.width, canvas.height] = [said.width, said.height];
      }
      if (!lost) canvas.hidden = false;
      save.disabled = canvas.hidden;
      setKeys(said.keys);
      show();
    } else {
      const view = new DataView(data);
      const tiles = [];
      for (let at = 0; at < data.byteLength; ) {
        const [x, y] = [view.getUint16(at, true), view.getUint16(at + 2, true)];
        const start = at + 8;
        at = start + view.getUint32(at + 4, true);
        const file = new Blob([new Uint8Array(data, start, at - start)], { type: "image/png" });
        tiles.push(createImageBitmap(file).then((tile) => ({ tile, x, y })));
      }
      // All of an update at once.
      for (const { tile, x, y } of await Promise.all(tiles)) {
        if (!over) pen.drawImage(tile, x, y);
        tile.close();
      }
    }
    if (mine.readyState === WebSocket.OPEN) mine.send("seen");
  }

  function setKeys(on) {
    keys = on;
    stage.classList.toggle("keys", on);
    attention.hidden = hint.hidden = !on;
    stage.ariaLabel = on
      ? "The guest's screen; what is typed here goes to the guest, and Ctrl+Alt+G ends that"
      : "The guest's screen; arrow keys scroll it";
  }

  // What is done here, for linkspan to pass on.
  function tell(text) {
    if (keys && socket.readyState === WebSocket.OPEN) socket.send(text);
  }

  // Keys by their place: the guest has a layout of its own.
  function key(event, what) {
    if (!keys || event.target !== stage || !/^[A-Za-z0-9]+$/.test(event.code)) return;
    event.preventDefault();
    tell(what + " " + event.code);
  }

  stage.onkeydown = (event) => {
    // Nobody is caught in the picture; what was down is let go of with the focus.
    if (keys && event.ctrlKey && event.altKey && event.code === "KeyG") {
      event.preventDefault();
      fit.focus();
    } else key(event, "down");
  };
  stage.onkeyup = (event) => key(event, "up");
  stage.onblur = () => tell("free");
  attention.onclick = () => {
    const held = ["ControlLeft", "AltLeft", "Delete"];
    for (const code of held) tell("down " + code);
    for (const code of held.reverse()) tell("up " + code);
  };

  // The buttons of a page, in their order: left, right, middle, back, forward; and of a wheel.
  const BUTTONS = [1, 4, 2, 128, 256];
  const WHEEL = { up: 8, down: 16, left: 32, right: 64 };

  function point(event, turned = 0) {
    const box = canvas.getBoundingClientRect();
    const at = (from, length, count) =>
      Math.max(0, Math.min(count - 1, Math.floor((from * count) / length)));
    const x = at(event.clientX - box.left, box.width, canvas.width);
    const y = at(event.clientY - box.top, box.height, canvas.height);
    const held = BUTTONS.reduce((all, it, bit) => (event.buttons & (1 << bit) ? all | it : all), 0);
    // A turn of a wheel is down and up.
    for (const buttons of turned ? [held | turned, held] : [held]) tell(`at ${x} ${y} ${buttons}`);
  }

  // Of all places between two pictures only the last one counts.
  let moved = null;
  canvas.onpointermove = (event) => {
    if (!keys) return;
    if (!moved) {
      requestAnimationFrame(() => {
        if (moved) point(moved);
        moved = null;
      });
    }
    moved = event;
  };
  canvas.onpointerdown = (event) => {
    if (!keys) return;
    canvas.setPointerCapture(event.pointerId);
    stage.focus({ preventScroll: true });
    moved = null;
    point(event);
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => {
    moved = null;
    point(event);
  };
  canvas.oncontextmenu = (event) => {
    if (keys) event.preventDefault();
  };
  canvas.onwheel = (event) => {
    if (!keys) return;
    event.preventDefault();
    const [across, down] = [event.deltaX, event.deltaY];
    if (down) point(event, down < 0 ? WHEEL.up : WHEEL.down);
    if (across) point(event, across < 0 ? WHEEL.left : WHEEL.right);
  };

  function setFit(on) {
    stage.classList.toggle("fit", on);
    fit.setAttribute("aria-pressed", String(on));
  }

  fit.onclick = () => setFit(!stage.classList.contains("fit"));
  full.onclick = () => {
    if (document.fullscreenElement) document.exitFullscreen();
    else stage.requestFullscreen().catch(() => {});
  };
  save.onclick = () => canvas.toBlob((file) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = "screen.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });

  canvas.hidden = true;
  [canvas.width, canvas.height] = [0, 0];
  say("Connecting…");
  setFit(true);
  const watch = setInterval(show, 200);
  connect();
  return () => {
    over = true;
    clearInterval(watch);
    clearTimeout(retry);
    setKeys(false);
    socket.close();
  };
}
