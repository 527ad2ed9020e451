// Frames arrive one by one as grey atlases: rows are channel x group, columns are cells.
// A group is one row of images. Where a run has a series, the groups from `run.series` on are alternatives:
// one of them is shown large. Colour, contrast, the chosen cell and the step shown are all decided here,
// so nothing waits for the server.
const find = selector => element.querySelector(selector);
const GAMMA = 0.65, past = new Set();      // runs that gave way to a newer one
let run = null, frames = [], at = 0, mode = 'x1_pred', following = true, timer = null;
let chosen = Number(new URLSearchParams(location.search).get('cell')) || 0;
let channels = [], controls = [], cells = [], large = [], arriving = Promise.resolve();
let alternative = 0, small = [], halves = [];

// Which channels are shown, and how bright, is one setting for all viewers of the page: name -> {on, low, high}.
window.mfmChannels ??= {};
const plain = { on: true, low: 0, high: 255 };
const inAddress = channel => window.mfmAsked ? window.mfmAsked.get(channel.name) ?? { ...plain, on: false } : plain;
const setting = channel => (window.mfmChannels[channel.name] ??= { ...inAddress(channel) });
const notifyViewers = () => window.dispatchEvent(new CustomEvent('mfm-channels'));

function canvas(parent) {
  const added = document.createElement('canvas');
  [added.height, added.width] = run.size;
  parent.append(added);
  return added;
}

// One table a channel: grey level -> red, green, blue to add.
function tables() {
  return channels.map(c => {
    const table = new Float32Array(768), { on, low, high } = setting(c);
    if (on) for (let v = 0; v < 256; v++) {
      const level = 255 * Math.min(1, Math.max(0, (v - low) / Math.max(1, high - low))) ** GAMMA;
      for (let k = 0; k < 3; k++) table[3 * v + k] = level * c.rgb[k];
    }
    return table;
  });
}

function paint(target, plane, group, seed, luts) {
  const [h, w] = run.size, context = target.getContext('2d');
  const picture = context.createImageData(w, h), out = picture.data;
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    let red = 0, green = 0, blue = 0;
    for (let c = 0; c < luts.length; c++) {
      const v = 3 * plane[((c * run.groups + group) * h + y) * run.n * w + seed * w + x];
      red += luts[c][v]; green += luts[c][v + 1]; blue += luts[c][v + 2];
    }
    const i = 4 * (y * w + x);
    out[i] = red; out[i + 1] = green; out[i + 2] = blue; out[i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

function redraw() {
  const frame = frames[at];
  if (!frame) return;
  const luts = tables(), plane = frame[mode];
  const groups = largeGroups(), inGallery = run.series ? [0, groups.at(-1)] : groups;
  large.forEach((c, i) => paint(c, plane, groups[i], chosen, luts));
  halves.forEach((c, i) => paint(c, plane, groups.at(i - 2), chosen, luts));
  small.forEach((c, i) => paint(c, plane, run.series + i, chosen, luts));
  cells.forEach((pair, cell) => pair.forEach((c, i) => paint(c, plane, inGallery[i], cell, luts)));
  find('.scrub').value = at;
  const direction = !run.series ? '' : frame.step < run.steps / 2 ? 'inverting, ' : 'sampling, ';
  const where = `${direction}t = ${frame.t.toFixed(2)}, step ${frame.step} of ${run.steps}`;
  find('.where').textContent = where;
  find('.scrub').setAttribute('aria-valuetext', where);
}

function largeGroups() {
  const fixed = [...Array(run.series ?? run.groups).keys()];
  return run.series ? [...fixed, run.series + alternative] : fixed;
}

function choose(cell) {
  chosen = cell;
  element.querySelectorAll('.cell').forEach((cell, i) => {
    cell.setAttribute('aria-selected', i === chosen);
    cell.tabIndex = i === chosen ? 0 : -1;
  });
  redraw();
}

// Choose a cell and put it into the address.
function select(cell) {
  choose(cell);
  window.mfmLook?.(cell);
}

function pause() {
  clearInterval(timer);
  timer = null;
  find('.play').textContent = '▶';
  find('.play').setAttribute('aria-label', 'Play the trajectory');
}

function play() {
  if (timer) return pause();
  if (at >= frames.length - 1) at = 0;
  following = false;
  find('.play').textContent = '❚❚';
  find('.play').setAttribute('aria-label', 'Pause');
  timer = setInterval(() => {
    if (at >= frames.length - 1) return pause();
    at += 1;
    redraw();
  }, 160);
}

function channelControl(c) {
  const row = document.createElement('div');
  row.className = 'channel';
  row.innerHTML = `<label>
      <input type="checkbox"><i style="background:rgb(${c.rgb.map(v => 255 * v)})"></i><span></span></label>
    <input type="range" min="0" max="254"><input type="range" min="1" max="255">
    <span class="levels"></span>`;
  row.querySelector('label span').textContent = c.name;
  const [on, low, high] = row.querySelectorAll('input'), levels = row.querySelector('.levels');
  low.setAttribute('aria-label', `${c.name}: grey level shown as black`);
  high.setAttribute('aria-label', `${c.name}: grey level shown as full colour`);
  const change = fields => { Object.assign(setting(c), fields); notifyViewers(); };
  on.addEventListener('input', () => change({ on: on.checked }));
  low.addEventListener('input', () => change({ low: Math.min(+low.value, setting(c).high - 1) }));
  high.addEventListener('input', () => change({ high: Math.max(+high.value, setting(c).low + 1) }));
  const show = () => {
    const now = setting(c);
    on.checked = now.on;
    low.value = now.low;
    high.value = now.high;
    levels.textContent = `${now.low} to ${now.high}`;
  };
  show();
  return { row, show };
}

function channelControls() {
  controls = channels.map(channelControl);
  const reset = document.createElement('button');
  reset.type = 'button';
  reset.className = 'reset';
  reset.textContent = 'Reset contrast';
  reset.addEventListener('click', () => {
    channels.forEach(c => Object.assign(setting(c), plain));
    notifyViewers();
  });
  find('.channels').replaceChildren(...controls.map(control => control.row), reset);
}

function channelsChanged() {
  if (!element.isConnected) return window.removeEventListener('mfm-channels', channelsChanged);
  controls.forEach(control => control.show());
  redraw();
}

function largePicture(group) {
  const figure = document.createElement('figure');
  figure.innerHTML = '<figcaption></figcaption>';
  figure.firstChild.textContent = run.labels[group];
  const picture = canvas(figure);
  picture.setAttribute('role', 'img');
  picture.setAttribute('aria-label', `Cell: ${run.labels[group]}`);
  large.push(picture);
  return figure;
}

function galleryCells() {
  const legend = document.createElement('div'), rows = run.series ? 2 : run.groups;
  legend.className = 'legend';
  legend.textContent = `${run.legend} Choose one to see it large.`;
  const options = run.names.map((name, i) => {
    const cell = document.createElement('button');
    cell.type = 'button';
    cell.className = 'cell';
    cell.setAttribute('role', 'option');
    cell.setAttribute('aria-label', name);
    const pictures = Array.from({ length: rows }, () => canvas(cell));
    cell.append(name);
    cell.addEventListener('click', () => select(i));
    return { cell, pictures };
  });
  cells = options.map(option => option.pictures);
  find('.gallery').replaceChildren(legend, ...options.map(option => option.cell));
}

// The last two large pictures on top of each other, and every alternative small beside them.
function seriesControls() {
  const stack = find('.stack'), strip = find('.strip');
  find('.series').hidden = !run.series;
  stack.replaceChildren();
  strip.replaceChildren();
  halves = []; small = [];
  if (!run.series) return;
  halves = [canvas(stack), canvas(stack)];
  wipe();
  find('.strip-title').hidden = run.groups - run.series < 2;
  if (run.groups - run.series < 2) return;
  run.labels.slice(run.series).forEach((label, i) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'alternative';
    button.setAttribute('aria-pressed', i === alternative);
    small.push(canvas(button));
    button.append(label);
    button.addEventListener('click', () => { pick(i); trigger('input'); });
    strip.append(button);
  });
}

// The next frame may replace `props.value` before the server reads it, so what was picked stands in the page.
function pick(i) {
  alternative = i;
  find('.series').dataset.picked = JSON.stringify({ run: run.id, alternative });
  element.querySelectorAll('.alternative').forEach((button, k) => button.setAttribute('aria-pressed', k === i));
  find('.pair').lastChild.firstChild.textContent = run.labels[run.series + i];
  large.at(-1).setAttribute('aria-label', `Cell: ${run.labels[run.series + i]}`);
  redraw();
}

function wipe() {
  const x = find('.wipe').value;
  find('.stack').style.setProperty('--x', `${x}%`);
  find('.wipe').setAttribute('aria-valuetext', `${x} % of it before`);
}

function begin(start) {
  pause();
  if (run) past.add(run.id);
  run = start; frames = []; at = 0; following = true; large = [];
  channels = run.channels;
  find('.hint').hidden = true;
  find('.stage').hidden = false;
  find('.provenance').textContent = '';
  find('.where').textContent = 'starting';
  find('.scrub').max = 0;
  alternative = 0;
  find('.pair').replaceChildren(...largeGroups().map(largePicture));
  seriesControls();
  galleryCells();
  channelControls();
  choose(Math.min(chosen, run.n - 1));
}

async function grey(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const sheet = document.createElement('canvas');
  [sheet.width, sheet.height] = [image.width, image.height];
  const context = sheet.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, image.width, image.height).data, plane = new Uint8Array(rgba.length / 4);
  for (let i = 0; i < plane.length; i++) plane[i] = rgba[4 * i];
  return plane;
}

async function show(frame) {
  const { id } = run, { t, step } = frame;
  const [x1_pred, xt] = await Promise.all([grey(frame.x1_pred), grey(frame.xt)]);
  if (id !== run.id) return;
  frames = [...frames.filter(earlier => earlier.step < step), { t, step, x1_pred, xt }];
  find('.scrub').max = frames.length - 1;
  if (following) { at = frames.length - 1; redraw(); }
}

watch('value', () => {
  if (!props.value) return;
  const message = JSON.parse(props.value);
  if (!message.run || past.has(message.run.id)) return;
  if (run?.id !== message.run.id) begin(message.run);
  // Frames are decoded in the order they were sent.
  if (message.frame) arriving = arriving.then(() => show(message.frame)).catch(() => {});
  if (message.done) find('.provenance').textContent = message.done;
});

find('.hint').innerHTML = HINT;
window.addEventListener('mfm-channels', channelsChanged);
find('.wipe').addEventListener('input', wipe);
find('.play').addEventListener('click', play);
find('.scrub').addEventListener('input', event => {
  pause();
  following = false;
  at = +event.target.value;
  redraw();
});
element.querySelectorAll('.mode input').forEach(input => input.addEventListener('change', () => {
  mode = input.value;
  redraw();
}));
find('.gallery').addEventListener('keydown', event => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step || !run) return;
  event.preventDefault();
  select((chosen + step + run.n) % run.n);
  element.querySelectorAll('.cell')[chosen].focus();
});
