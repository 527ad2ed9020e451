// Frames arrive one by one as grey atlases: rows are channel x group, columns are seeds.
// Colour, contrast, the chosen cell and the place on the path are all decided here, so nothing waits for the server.
const find = selector => element.querySelector(selector);
const GAMMA = 0.65;
let run = null, frames = [], at = 0, chosen = 0, mode = 'guess', following = true, timer = null;
let channels = [], cells = [], big = [], arriving = Promise.resolve();

function canvas(parent) {
  const made = document.createElement('canvas');
  [made.height, made.width] = run.size;
  parent.append(made);
  return made;
}

// One table a channel: grey level -> red, green, blue to add.
function tables() {
  return channels.map(c => {
    const table = new Float32Array(768);
    if (c.on) for (let v = 0; v < 256; v++) {
      const level = 255 * Math.min(1, Math.max(0, (v - c.low) / Math.max(1, c.high - c.low))) ** GAMMA;
      for (let k = 0; k < 3; k++) table[3 * v + k] = level * c.rgb[k];
    }
    return table;
  });
}

function paint(target, plane, group, seed, luts) {
  const [h, w] = run.size, context = target.getContext('2d'), picture = context.createImageData(w, h), out = picture.data;
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
  big.forEach((c, group) => paint(c, plane, group, chosen, luts));
  cells.forEach((pair, seed) => pair.forEach((c, group) => paint(c, plane, group, seed, luts)));
  find('.scrub').value = at;
  const where = `t = ${frame.t.toFixed(2)}, step ${frame.step} of ${run.steps}`;
  find('.where').textContent = where;
  find('.scrub').setAttribute('aria-valuetext', where);
}

function choose(seed) {
  chosen = seed;
  element.querySelectorAll('.cell').forEach((cell, i) => {
    cell.setAttribute('aria-selected', i === seed);
    cell.tabIndex = i === seed ? 0 : -1;
  });
  redraw();
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

function channelControls() {
  const box = find('.channels');
  box.replaceChildren();
  for (const c of channels) {
    const row = document.createElement('div');
    row.className = 'channel';
    row.innerHTML = `<label><input type="checkbox" ${c.on ? 'checked' : ''}><i style="background:rgb(${c.rgb.map(v => 255 * v)})"></i><span></span></label>
      <input type="range" min="0" max="254" value="${c.low}"><input type="range" min="1" max="255" value="${c.high}"><span class="levels"></span>`;
    row.querySelector('label span').textContent = c.name;
    const [on, low, high] = row.querySelectorAll('input'), levels = row.querySelector('.levels');
    low.setAttribute('aria-label', `${c.name}: grey level shown as black`);
    high.setAttribute('aria-label', `${c.name}: grey level shown as full colour`);
    const say = () => { levels.textContent = `${c.low} to ${c.high}`; };
    on.addEventListener('input', () => { c.on = on.checked; redraw(); });
    low.addEventListener('input', () => { c.low = Math.min(+low.value, c.high - 1); low.value = c.low; say(); redraw(); });
    high.addEventListener('input', () => { c.high = Math.max(+high.value, c.low + 1); high.value = c.high; say(); redraw(); });
    say();
    box.append(row);
  }
  const reset = document.createElement('button');
  reset.type = 'button';
  reset.className = 'reset';
  reset.textContent = 'Reset contrast';
  reset.addEventListener('click', () => {
    channels.forEach(c => Object.assign(c, { on: true, low: 0, high: 255 }));
    channelControls();
    redraw();
  });
  box.append(reset);
}

function begin(start) {
  pause();
  const kept = Object.fromEntries(channels.map(c => [c.name, c]));
  run = start; frames = []; at = 0; following = true; big = [];
  channels = run.channels.map(c => kept[c.name] || { ...c, on: true, low: 0, high: 255 });
  find('.hint').hidden = true;
  find('.stage').hidden = false;
  find('.provenance').textContent = '';
  find('.where').textContent = 'starting';
  find('.scrub').max = 0;
  const pair = find('.pair'), gallery = find('.gallery');
  pair.replaceChildren();
  run.labels.forEach((label, group) => {
    const figure = document.createElement('figure');
    figure.innerHTML = '<figcaption></figcaption>';
    figure.firstChild.textContent = label;
    big.push(canvas(figure));
    big[group].setAttribute('role', 'img');
    big[group].setAttribute('aria-label', `Generated cell: ${label}`);
    pair.append(figure);
  });
  gallery.replaceChildren();
  const legend = document.createElement('div');
  legend.className = 'legend';
  legend.textContent = run.groups > 1 ? 'Every seed: treated above, control from the same noise below. Choose one to see it large.' : 'Every seed. Choose one to see it large.';
  gallery.append(legend);
  cells = run.seeds.map((seed, i) => {
    const cell = document.createElement('button');
    cell.type = 'button';
    cell.className = 'cell';
    cell.setAttribute('role', 'option');
    cell.setAttribute('aria-label', `Seed ${seed}`);
    const pictures = run.labels.map(() => canvas(cell));
    cell.append(`seed ${seed}`);
    cell.addEventListener('click', () => choose(i));
    gallery.append(cell);
    return pictures;
  });
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
  const mine = run.id;
  const [guess, state] = await Promise.all([grey(frame.guess), grey(frame.state)]);
  if (mine !== run.id) return;
  frames[frame.step] = { t: frame.t, step: frame.step, guess, state };
  find('.scrub').max = frames.length - 1;
  if (following) { at = frames.length - 1; redraw(); }
}

watch('value', () => {
  if (!props.value) return;
  const news = JSON.parse(props.value);
  if (!run || run.id !== news.run.id) begin(news.run);
  if (news.frame) arriving = arriving.then(() => show(news.frame)).catch(() => {});     // in the order they were sent
  if (news.done) find('.provenance').textContent = news.done;
});

find('.play').addEventListener('click', play);
find('.scrub').addEventListener('input', event => { pause(); following = false; at = +event.target.value; redraw(); });
element.querySelectorAll('.mode input').forEach(input => input.addEventListener('change', () => { mode = input.value; redraw(); }));
find('.gallery').addEventListener('keydown', event => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step || !run) return;
  event.preventDefault();
  choose((chosen + step + run.n) % run.n);
  element.querySelectorAll('.cell')[chosen].focus();
});
