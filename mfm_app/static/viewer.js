// Frames arrive one by one, a grey atlas for each channel that is looked at: cells row by row, group after group.
// A group is one row of images. Where a run has a series, the groups from `run.series` on are alternatives:
// one of them is shown large; where it has a `stack`, groups stand in columns of so many, such as treated above
// control, and the effect of one column is shown. Colour, contrast, the chosen cell and the step shown are all
// decided here, so nothing waits for the server but a channel that is looked at for the first time.
const find = selector => element.querySelector(selector);
const remote = typeof server === 'undefined' ? null : server;      // there is none in a notebook
const GAMMA = 0.65, past = new Set();      // runs that gave way to a newer one
let run = null, frames = [], at = 0, mode = 'x1_pred', following = true, timer = null;
let chosen = Number(new URLSearchParams(location.search).get('cell')) || 0;
let channels = [], controls = [], cells = [], large = [], arriving = Promise.resolve();
let alternative = 0, small = [], halves = [], told = '', asking = false, drawnAs = '';

// Which channels are shown, in which colour and how bright, is one setting for all viewers of the page:
// name -> {on, low, high, colour, first}. So is the way they are shown: `as` composite, one, grid or rxrx1.
window.mfmChannels ??= {};
const picture = window.mfmPicture ??= { as: 'composite', one: '', table: 'grey', low: 0, high: 255 };
const plain = c => ({ on: run.shown.includes(c.name), low: 0, high: 255, colour: c.colour });
const inAddress = ({ name }) => ({
  ...window.mfmAsked && (window.mfmAsked.get(name) ?? { on: false }),
  ...window.mfmAskedOne?.name === name && { low: window.mfmAskedOne.low, high: window.mfmAskedOne.high },
});
const setting = c => (window.mfmChannels[c.name] ??= { ...plain(c), ...inAddress(c), first: plain(c) });
const notifyViewers = () => window.dispatchEvent(new CustomEvent('mfm-channels'));
const change = (what, fields) => { Object.assign(what, fields); notifyViewers(); };
const ways = { composite: 'Composite', one: 'One channel', grid: 'Side by side', rxrx1: 'RxRx1 colours' };
const possible = () => Object.keys(ways).filter(as => as === 'grid' ? channels.length > 1
  : as !== 'rxrx1' || channels.length === RXRX1.length);
const way = () => possible().includes(picture.as) ? picture.as : 'composite';
const oneShown = () => channels.find(c => c.name === picture.one)
  ?? channels.find(c => setting(c).on) ?? channels[0];

function canvas(parent) {
  const added = document.createElement('canvas');
  [added.height, added.width] = run.size;
  parent.append(added);
  return added;
}

// From grey levels to colours, as `viz` has it

const rgbOf = c => PALETTE[c.colour] ?? (/^#[0-9a-f]{6}$/i.test(c.colour)
  ? [1, 3, 5].map(i => parseInt(c.colour.slice(i, i + 2), 16) / 255) : [1, 1, 1]);
const level = (v, { low, high }) => Math.min(1, Math.max(0, (v - low) / Math.max(1, high - low))) ** GAMMA;
const greys = [...Array(256).keys()];
const filled = f => Float64Array.from({ length: 768 }, (_, i) => f(Math.floor(i / 3), i % 3));

function tableColour(name, v, k) {
  const points = TABLES[name] ?? TABLES.grey, i = Math.min(50, Math.floor(v / 5)), part = v - 5 * i;
  const at = j => parseInt(points.slice(6 * j + 2 * k, 6 * j + 2 * k + 2), 16);
  return Math.round((at(i) * (5 - part) + at(i + 1) * part) / 5);
}

const addsUp = colours => [0, 1, 2].every(k => colours.reduce((sum, rgb) => sum + rgb[k], 0) <= MOST);
const lookUp = (c, range) => ({
  parts: [{ c, table: filled((v, k) => tableColour(picture.table, Math.round(255 * level(v, range)), k)) }],
});

// How a picture is made: for each channel grey level -> red, green, blue; `levels` where colours are averaged.
function brush(as = way()) {
  if (as === 'one') return lookUp(channels.indexOf(oneShown()), setting(oneShown()));
  if (as === 'rxrx1') return { parts: RXRX1.map(([r, g, b, full], c) => ({
    c, table: filled((v, k) => Math.trunc([r, g, b][k] * Math.min(1, v / 255 / (full / 255)))) })) };
  const on = channels.map((channel, c) => ({ c, now: setting(channel) })).filter(({ now }) => now.on);
  const averaged = !addsUp(on.map(({ now }) => rgbOf(now)));
  return { averaged, parts: on.map(({ c, now }) => {
    const levels = greys.map(v => level(v, now)), rgb = rgbOf(now);
    return { c, levels, table: filled((v, k) => 255 * levels[v] ** (averaged ? 2 : 1) * rgb[k]) };
  }) };
}

function paint(target, planes, group, cell, { parts, averaged }, { size: [h, w], n, columns } = run) {
  const context = target.getContext('2d'), image = group * n + cell;
  const drawn = context.createImageData(w, h), out = drawn.data, wide = columns * w;
  const start = Math.floor(image / columns) * h * wide + image % columns * w;
  const there = parts.filter(({ c }) => planes?.[c]);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    let red = 0, green = 0, blue = 0, weight = 0, brightest = 0;
    for (const { c, table, levels } of there) {
      const v = planes[c][start + y * wide + x];
      red += table[3 * v]; green += table[3 * v + 1]; blue += table[3 * v + 2];
      if (averaged) { weight += levels[v] ** 2; brightest = Math.max(brightest, levels[v]); }
    }
    const i = 4 * (y * w + x), share = averaged ? brightest / Math.max(weight, 1e-9) : 1;
    out[i] = red * share; out[i + 1] = green * share; out[i + 2] = blue * share; out[i + 3] = 255;
  }
  context.putImageData(drawn, 0, 0);
}

function redraw() {
  const frame = frames[at];
  if (!frame) return;
  const planes = frame[mode], look = brush(way() === 'grid' ? 'composite' : way());
  const groups = largeGroups(), inGallery = run.series ? [0, groups.at(-1)] : groups;
  if (drawnAs !== way()) layLarge();
  if (way() === 'grid') {
    const each = channels.map((_, c) => lookUp(c, picture));
    large.forEach((tiles, i) => tiles.forEach((tile, c) => paint(tile, planes, groups[i], chosen, each[c])));
  } else large.forEach(([c], i) => paint(c, planes, groups[i], chosen, look));
  halves.forEach((c, i) => paint(c, planes, groups.at(i - 2), chosen, look));
  small.forEach((c, i) => paint(c, planes, run.series + i, chosen, look));
  cells.forEach((pair, cell) => pair.forEach((c, i) => paint(c, planes, inGallery[i], cell, look)));
  find('.scrub').value = at;
  const direction = !run.series ? '' : frame.step < run.steps / 2 ? 'inverting, ' : 'sampling, ';
  const lacks = lookedAt().filter(c => !planes?.[c]).map(c => channels[c].name);
  const absent = lacks.length && frame.lost ? `; ${lacks.join(', ')} of this step is not kept` : '';
  const where = `${direction}t = ${frame.t.toFixed(2)}, step ${frame.step} of ${run.steps}${absent}`;
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

function labelled(kind, label, properties) {
  const made = Object.assign(document.createElement(kind), properties);
  made.setAttribute('aria-label', label);
  return made;
}

// Two sliders for the grey levels shown as black and as full colour, of a channel or of all.
function levelControl(name, what) {
  const low = labelled('input', `${name}: grey level shown as black`, { type: 'range', min: 0, max: 254 });
  const high = labelled('input', `${name}: grey level shown as full colour`, { type: 'range', min: 1, max: 255 });
  const levels = Object.assign(document.createElement('span'), { className: 'levels' });
  low.addEventListener('input', () => change(what(), { low: Math.min(+low.value, what().high - 1) }));
  high.addEventListener('input', () => change(what(), { high: Math.max(+high.value, what().low + 1) }));
  const show = () => {
    low.value = what().low;
    high.value = what().high;
    levels.textContent = `${what().low} to ${what().high}`;
  };
  return { parts: [low, high, levels], show };
}

function selection(label, names, changed) {
  const select = labelled('select', label);
  select.append(...names.map(name => new Option(name, name)));
  select.addEventListener('change', () => changed(select.value));
  return select;
}

const css = rgb => `rgb(${rgb.map(v => Math.round(255 * v))})`;

function channelControl(c, place) {
  const row = document.createElement('div');
  row.className = 'channel';
  row.innerHTML = '<label><input><i></i><span></span></label>';
  row.querySelector('label span').textContent = c.name;
  const input = row.querySelector('input'), swatch = row.querySelector('i'), own = plain(c).colour;
  const colours = selection(`${c.name}: colour`, [...new Set([...Object.keys(PALETTE), own])],
    colour => change(setting(c), { colour }));
  const levels = levelControl(c.name, () => setting(c));
  row.append(colours, ...levels.parts);
  input.addEventListener('input', () => {
    if (way() === 'one') change(picture, { one: c.name });
    else change(setting(c), { on: input.checked });
  });
  const show = () => {
    const now = setting(c), as = way(), alone = as === 'one', on = alone ? oneShown() === c : now.on;
    input.type = alone ? 'radio' : 'checkbox';
    input.name = alone ? `${run.id}-one` : '';
    input.checked = on;
    input.hidden = as === 'rxrx1';
    row.hidden = as === 'grid';
    swatch.hidden = alone;
    swatch.style.background = as === 'rxrx1' ? css(RXRX1[place].slice(0, 3).map(v => v / 255)) : css(rgbOf(now));
    colours.value = now.colour;
    colours.hidden = as !== 'composite' || !on;
    levels.parts.forEach(part => { part.hidden = as === 'rxrx1' || !on; });
    row.classList.toggle('off', as !== 'rxrx1' && !on);
    levels.show();
  };
  return { row, show };
}

// The way channels are shown, and what belongs to one way alone: a table of colours, one contrast for all.
function wayControl() {
  const row = document.createElement('div'), radios = document.createElement('div');
  row.className = 'way';
  radios.setAttribute('role', 'radiogroup');
  radios.setAttribute('aria-label', 'How the channels are shown');
  radios.append(...possible().map(as => {
    const label = document.createElement('label'), input = document.createElement('input');
    Object.assign(input, { type: 'radio', name: `${run.id}-way`, value: as });
    input.addEventListener('change', () => change(picture, { as, one: oneShown().name }));
    label.append(input, ways[as]);
    if (as === 'rxrx1') label.title = 'The six channels, in their order, in the fixed colours of RxRx1';
    return label;
  }));
  const table = selection('Table of colours', Object.keys(TABLES), name => change(picture, { table: name }));
  const levels = levelControl('All channels', () => picture), note = document.createElement('small');
  row.append(radios, table, ...levels.parts, note);
  row.hidden = possible().length < 2;
  const show = () => {
    const as = way();
    radios.querySelectorAll('input').forEach(input => { input.checked = input.value === as; });
    table.value = picture.table;
    table.hidden = !['one', 'grid'].includes(as);
    levels.parts.forEach(part => { part.hidden = as !== 'grid'; });
    note.textContent = as === 'rxrx1' ? 'Each channel has its own fixed contrast.'
      : as === 'composite' && !addsUp(switchedOn().map(c => rgbOf(setting(channels[c]))))
        ? 'So many colours would add up to white, so each pixel has the mean of those that are bright there.' : '';
    levels.show();
  };
  return { row, show };
}

function channelControls() {
  controls = [wayControl(), ...channels.map(channelControl)];
  const reset = document.createElement('button');
  reset.type = 'button';
  reset.className = 'reset';
  reset.textContent = 'Reset contrast';
  reset.title = 'Also colours, and which channels are shown, as at first';
  reset.addEventListener('click', () => {
    channels.forEach(c => Object.assign(setting(c), setting(c).first));
    change(picture, { low: 0, high: 255 });
  });
  find('.channels').replaceChildren(...controls.map(control => control.row), reset);
  controls.forEach(control => control.show());
}

function channelsChanged() {
  if (!element.isConnected) return window.removeEventListener('mfm-channels', channelsChanged);
  controls.forEach(control => control.show());
  redraw();
  fetchMissing();
}

function largePicture(group) {
  const figure = document.createElement('figure');
  figure.innerHTML = '<figcaption></figcaption>';
  const heads = run.stack > 1 && group % run.stack === 0;      // a column, whose effect can be looked at
  const caption = heads ? figure.firstChild.appendChild(document.createElement('button')) : figure.firstChild;
  caption.textContent = run.labels[group];
  if (!heads) return figure;
  Object.assign(caption, { type: 'button', className: 'column', title: 'Show its effect below', disabled: true });
  caption.addEventListener('click', () => { pickColumn(group / run.stack); trigger('input'); });
  return figure;
}

// One canvas in each large picture, or one a channel.
function layLarge() {
  drawnAs = way();
  large = [...find('.pair').children].map((figure, i) => {
    const label = run.labels[largeGroups()[i]], shown = drawnAs === 'grid' ? channels : [null];
    const pictures = document.createElement('div');
    pictures.className = drawnAs === 'grid' ? 'tiles' : 'whole';
    pictures.style.setProperty('--columns', Math.min(4, Math.max(Math.ceil(Math.sqrt(shown.length)), 3), shown.length));
    const canvases = shown.map(c => {
      const part = document.createElement('div'), made = canvas(part);
      made.setAttribute('role', 'img');
      made.setAttribute('aria-label', c ? `${c.name}: ${label}` : `Cell: ${label}`);
      if (c) part.append(c.name);
      pictures.append(part);
      return made;
    });
    figure.replaceChildren(figure.firstChild, pictures);
    return canvases;
  });
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
    const sheet = run.stack ? cell.appendChild(document.createElement('div')) : cell;
    sheet.classList.toggle('sheet', sheet !== cell);
    const pictures = Array.from({ length: rows }, () => canvas(sheet));
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
  layLarge();
  redraw();
}

function pickColumn(i) {
  find('.series').dataset.picked = JSON.stringify({ run: run.id, alternative: i });
  element.querySelectorAll('.column').forEach((button, k) => button.setAttribute('aria-pressed', k === i));
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
  told = JSON.stringify([run.shown.map(name => channels.findIndex(c => c.name === name)).sort((a, b) => a - b), false]);
  find('.pair').replaceChildren(...largeGroups().map(largePicture));
  find('.stage').style.setProperty('--stack', run.stack ?? 1);
  find('.stage').style.setProperty('--lines', run.groups / (run.stack ?? 1));
  find('.pair').classList.toggle('columns', Boolean(run.stack));
  find('.gallery').classList.toggle('wide', Boolean(run.stack));
  if (run.stack) pickColumn(run.picked);
  layLarge();
  seriesControls();
  galleryCells();
  channelControls();
  choose(Math.min(chosen, run.n - 1));
  fetchMissing();
  element.dispatchEvent(new CustomEvent('mfm-run', { bubbles: true, detail: run.id }));
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

async function decoded(pictures) {
  const pairs = Object.entries(pictures ?? {}).map(async ([c, uri]) => [c, await grey(uri)]);
  return Object.fromEntries(await Promise.all(pairs));
}

async function show(frame) {
  const { id } = run, { t, step } = frame;
  const [x1_pred, xt] = await Promise.all([decoded(frame.x1_pred), decoded(frame.xt)]);
  if (id !== run.id) return;
  frames = [...frames.filter(earlier => earlier.step < step), { t, step, x1_pred, xt }];
  find('.scrub').max = frames.length - 1;
  if (following) { at = frames.length - 1; redraw(); }
  fetchMissing();
}

const switchedOn = () => [...channels.keys()].filter(c => setting(channels[c]).on);
const lookedAt = () => ({
  composite: switchedOn, one: () => [channels.indexOf(oneShown())], grid: () => [...channels.keys()],
  rxrx1: () => [...channels.keys()],
})[way()]();

// What is looked at and has not come is asked for, and comes with the frames from then on.
async function fetchMissing() {
  if (!run || asking) return;
  const wanted = lookedAt(), { id } = run, kind = mode, telling = JSON.stringify([wanted, kind === 'xt']);
  const without = frames.filter(frame => !frame.lost && wanted.some(c => !frame[kind][c]));
  if (!without.length && (telling === told || find('.provenance').textContent)) return;      // no frame is to come
  told = telling;
  const missing = wanted.filter(c => without.some(frame => !frame[kind][c])), steps = without.map(frame => frame.step);
  if (!remote) return without.forEach(frame => { frame.lost = true; });
  asking = true;
  find('.stage').setAttribute('aria-busy', true);
  try {
    const query = { run: id, channels: wanted, states: kind === 'xt', missing, steps };
    const came = new Map((JSON.parse(await remote.get_pictures(query)) ?? []).map(frame => [frame.step, frame]));
    for (const frame of without) {
      if (came.has(frame.step)) Object.assign(frame[kind], await decoded(came.get(frame.step)[kind]));
      else frame.lost = true;
    }
  } catch { without.forEach(frame => { frame.lost = true; }); }
  asking = false;
  find('.stage').removeAttribute('aria-busy');
  redraw();
  fetchMissing();      // more may have been asked for or come meanwhile
}

watch('value', () => {
  if (!props.value) return;
  const message = JSON.parse(props.value);
  if (!message.run || past.has(message.run.id)) return;
  if (run?.id !== message.run.id) begin(message.run);
  // Frames are decoded in the order they were sent.
  if (message.frame) arriving = arriving.then(() => show(message.frame)).catch(() => {});
  if (!message.done) return;
  find('.provenance').textContent = message.done;
  element.querySelectorAll('.column').forEach(button => { button.disabled = false; });
});

// Other pictures of the page are painted as these are.
find('.viewer').painter = { paint, decoded, look: () => brush(way() === 'grid' ? 'composite' : way()) };
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
const states = `states-${Math.random()}`;      // radios of two viewers are no group
element.querySelectorAll('.mode input').forEach(input => {
  input.name = states;
  input.checked = input.value === mode;
  input.addEventListener('change', () => {
    mode = input.value;
    redraw();
    fetchMissing();
  });
});
find('.gallery').addEventListener('keydown', event => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step || !run) return;
  event.preventDefault();
  select((chosen + step + run.n) % run.n);
  element.querySelectorAll('.cell')[chosen].focus();
});
