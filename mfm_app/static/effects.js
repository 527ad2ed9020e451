// props.value is JSON from Python: {title, note, maps, bars, than, stale, provenance}; maps and bars are plotly
// figures, bars may be null. Where significance is known a map has two layers, and the switch makes the layer of
// pixels that may be chance invisible; hovering still reads their numbers.
const find = selector => element.querySelector(selector);
const significantOnly = find('.switch input'), maps = find('.maps .plot'), bars = find('.profile .plot');
const minSide = 80, maxSide = 320, nameHeight = 26;      // pixels along the side of a map, and above it
const loadFailed = 'The figures could not be loaded from the server; reload the page to try again.';
let effect = null, width = 0, configs = null, loaded = 0;

// As many maps in a row as the figure has them, or as the page has room for; so wide that no map is too large.
function mapLayout() {
  const layout = structuredClone(effect.maps.layout), { grid, margin, xaxis, yaxis } = layout;
  const axes = Object.keys(layout).filter(name => name.startsWith('xaxis')).map(name => layout[name]);
  const room = Math.floor((maps.clientWidth - margin.l - margin.r) / minSide);
  grid.rows = Math.ceil(axes.length / Math.max(1, Math.min(grid.columns, room)));
  grid.columns = Math.ceil(axes.length / grid.rows);
  const length = axis => Math.abs(axis.range[1] - axis.range[0]);
  const across = (grid.columns - grid.xgap) / (1 - grid.xgap);
  const side = Math.min(maxSide, (maps.clientWidth - margin.l - margin.r) / across);
  const high = side * length(yaxis) / length(xaxis);
  grid.ygap = Math.max(grid.ygap, nameHeight / (high + nameHeight));
  const down = (grid.rows - grid.ygap) / (1 - grid.ygap);
  for (const axis of axes) axis.title.text = cut(axis.title.text, side / 7);
  return Object.assign(layout, {
    width: Math.floor(side * across) + margin.l + margin.r,
    height: Math.ceil(high * down) + margin.t + margin.b,
    uirevision: loaded,      // what is enlarged stays so on another width
  });
}

// What is too long for its place loses its middle; hovering tells all of it.
function cut(text, room) {
  const n = Math.max(6, Math.floor(room)), half = Math.floor(n / 2);
  return text.length > n ? `${text.slice(0, n - half - 1)}…${text.slice(-half)}` : text;
}

// The profile on a narrow page: short names, and a short title that fits below the bars.
function barLayout({ data: [{ y }], layout }) {
  const width = bars.clientWidth, { xaxis, yaxis } = layout;
  if (width >= 480) return { ...layout, width };
  const sizes = { title: { ...xaxis.title, text: 'effect size, sd' }, nticks: 4, tickangle: 0 };
  const ticks = { tickmode: 'array', tickvals: y, ticktext: y.map(name => cut(name, 24)) };
  return { ...layout, width, xaxis: { ...xaxis, ...sizes }, yaxis: { ...yaxis, ...ticks } };
}

// Dragging scrolls the page until enlarging is switched on. Made once: to plotly, other settings are another plot.
function config(Plotly, filename, canZoom) {
  const zoom = {
    name: 'enlarge', title: 'Enlarge a part: drag a box', icon: Plotly.Icons.zoombox, attr: 'dragmode', val: 'zoom',
    click: plot => Plotly.relayout(plot, { dragmode: plot.layout.dragmode ? false : 'zoom' }),
  };
  const save = window.mfmSaveButton?.(Plotly, filename, () => effect.provenance);
  return {
    displaylogo: false, displayModeBar: true, scrollZoom: false, showAxisDragHandles: false,
    modeBarButtons: [[...canZoom ? [zoom, 'resetScale2d'] : [], ...save ? [save] : []]],
  };
}

// What a screen reader reads of a drawing; the buttons on it stay within reach.
function describe(plot, sentence) {
  plot.querySelectorAll('.main-svg').forEach((svg, i) => {
    if (i) return svg.setAttribute('aria-hidden', 'true');
    svg.setAttribute('role', 'img');
    svg.setAttribute('aria-label', sentence);
  });
}

function describeAll() {
  const channels = [...new Set(effect.maps.data.map(trace => trace.name))].join(', ');
  const than = find('.than').textContent;
  describe(maps, `Heatmaps of the change in ${channels}. Red is higher intensity than ${than}, blue is lower.`);
  if (!effect.bars) return;
  const { x, y } = effect.bars.data[0], sizes = y.slice(0, 3).map((name, i) => `${name} ${x[i].toFixed(1)}`);
  describe(bars, `Effect sizes, the largest first: ${sizes.join(', ')} standard deviations.`);
}

async function draw() {
  width = maps.clientWidth;
  if (!effect || !width) return;      // what is hidden is drawn when it is visible
  let Plotly;
  try { Plotly = await window.mfmPlotly(plotly); } catch { find('.note').textContent = loadFailed; return; }
  if (!effect || !maps.clientWidth) return;
  configs ??= [config(Plotly, 'effect-maps', true), config(Plotly, 'morphology-profile')];
  const profile = effect.bars, opacity = significantOnly.checked ? 0 : 1;
  const traces = effect.maps.data.map(trace => trace.meta?.significant === false ? { ...trace, opacity } : trace);
  const done = [Plotly.react(maps, traces, mapLayout(), configs[0])];
  if (profile) done.push(Plotly.react(bars, profile.data, barLayout(profile), configs[1]));
  await Promise.all(done);
  describeAll();
}

function showTexts() {
  const layers = effect.maps.data.filter(trace => trace.meta?.significant);
  const share = layers.reduce((sum, trace) => sum + trace.meta.share, 0) / layers.length;
  find('h3').textContent = effect.title;
  find('.note').textContent = effect.note || '';
  find('.than').textContent = effect.than || 'untreated';
  significantOnly.disabled = !layers.length;
  if (significantOnly.disabled) significantOnly.checked = false;
  find('.why').textContent = significantOnly.disabled ? 'A test needs at least 6 cells.'
    : share ? `${(100 * share).toFixed(share < .1 ? 1 : 0)} % of all` : 'There are none.';
  find('.switch').classList.toggle('off', significantOnly.disabled);
  find('.profile').hidden = !effect.bars;
  legend();
}

function legend() { find('.unsure').hidden = !significantOnly.checked; }

function load(value) {
  effect = value?.maps ? value : value && effect && { ...effect, ...value, maps: effect.maps };
  find('.hint').hidden = Boolean(effect);
  find('.stage').hidden = !effect;
  if (!effect) return;
  find('.stale').hidden = !effect.stale;
  find('.both').classList.toggle('old', Boolean(effect.stale));
  if (value.maps) { loaded += 1; showTexts(); draw(); }
}

significantOnly.addEventListener('change', () => {
  legend();
  if (!maps.data) return;
  const uncertain = [...maps.data.keys()].filter(i => maps.data[i].meta?.significant === false);
  window.Plotly.restyle(maps, { opacity: significantOnly.checked ? 0 : 1 }, uncertain);
});

new ResizeObserver(() => {
  const current = maps.clientWidth;
  if (!effect || current === width) return;
  width = current;
  if (current) draw();
}).observe(find('.maps'));

watch('value', () => load(props.value ? JSON.parse(props.value) : null));
find('.hint').textContent = hint;
setTimeout(() => window.mfmPlotly?.(plotly).catch(() => {}));
if (props.value) load(JSON.parse(props.value));
