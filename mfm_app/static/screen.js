// props.value is JSON from Python, a little more of the screen each time:
// {run, state, total, results, refused, new_results, new_refused, figure, provenance}.
// `results` and `refused` count all rows so far: a lost message shows as a gap, and what is missing is asked for.
const find = selector => element.querySelector(selector);
const plot = find('.plot'), body = find('.table tbody'), head = find('.table thead tr'), details = find('.chosen');
const symbols = {
  known: 'circle', close: 'diamond', far: 'circle-open', likely: 'diamond', none: 'circle-open',
  well: 'circle', some: 'diamond', few: 'circle-open' };
const verdicts = {
  known: 'the model was trained on this compound',
  close: 'close to a compound it was trained on',
  far: 'far from all it was trained on; take it as a guess',
  likely: 'its structure speaks for a mechanism that the model knows',
  none: 'no claim: its structure speaks for no mechanism that the model knows',
  well: 'the model was trained on many of its cells',
  some: 'the model was trained on some of its cells; believe the kind of effect, not its strength',
  few: 'the model was trained on very few of its cells; take it as a sketch',
};
const saidByWells = {      // in two lines
  confirmed: ['wells confirm'], partly: ['wells confirm', 'in part'], contradicted: ['wells contradict'],
  none: ['no effect', 'in wells'] };
const inWells = {
  confirmed: 'measured wells confirm what is drawn', partly: 'measured wells confirm it in part',
  contradicted: 'measured wells contradict what is drawn',
  none: 'in measured wells this dose does nothing beyond chance' };
let run = null, total = null, results = [], refused = [], lines = new Map();      // lines: number -> tr
let figure = null, provenance = null, colours = {}, buttons = null;
let chosen = null, queries = 0, queue = Promise.resolve(), order = { key: 'strength', descending: true };
let started = null, timer = null, dirty = false, drawn = 0, interval = 1000, visible = false;

const label = result => result.name || result.smiles;
const noEffect = 'no effect';
const percent = share => `${Math.round(100 * share)} %`;
const shortP = p => (p < 0.001 ? '< 0.001' : p.toPrecision(1).replace(/^1$/, '1.0'));
const wellsOf = result => result.wells.split(' in ');      // what they say, and of which experiment where it is another
const rankOfVerdict = result => (result.wells ? Object.keys(saidByWells).indexOf(wellsOf(result)[0])
  : 4 + Object.keys(verdicts).indexOf(result.verdict));
const allColumns = [
  { key: 'rank', name: '#', width: 4, number: true, title: 'Rank, by the strength of the effect' },
  { key: 'molecule', name: byName ? 'Treatment' : 'Molecule', width: 18, value: label,
    title: `Below its name ${doses ? 'the dose and ' : ''}the experiment in which it and its control are drawn` },
  { key: 'strength', name: 'Effect', width: 8,
    title: `Strength of the effect; 1 is the spread of cells within a ${classes}` },
  { key: 'corrected', name: 'Beyond chance', width: 9.5, value: result => result.corrected ?? 2,
    title: 'Is the effect larger than between untreated cells of other seeds? The p-value is corrected for the number '
      + `of rows; of those that say yes, ${100 * alpha} % may be false` },
  { key: 'mechanism', name: 'Resembles', width: 24,
    title: `The real ${classes} whose effect is most alike, the cosine between the two, and the share of its cells `
      + 'that agree' },
  { key: 'likely', name: 'By structure', width: 22, value: result => -(result.probability ?? -1),
    title: `The most probable ${classes} of its structure, and how probable; "no claim" where none is likely` },
  { key: 'verdict', name: 'Confidence', width: 14.5, value: rankOfVerdict,
    title: byName ? 'What measured wells say of it, or how many cells of it the model was trained on'
      : 'What measured wells say of this compound and dose, or how near it is to what the model knows, and how often '
        + 'tested molecules of this kind came out right' },
  { key: 'tanimoto', name: 'Nearest', width: 14,
    title: 'The compound with the most similar structure, and the Tanimoto similarity' },
];
const absent = { likely: byName || !byMechanism, tanimoto: byName || byMechanism };
const columns = allColumns.filter(({ key }) => !absent[key]);
const doseOf = result => result.dose_um === null ? '' : `${+result.dose_um.toPrecision(3)} µM`;
const drawnAt = result => [doseOf(result), result.experiment].filter(Boolean).join(' · ');

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// The table

function header() {
  head.replaceChildren(...columns.map(column => {
    const th = make('th'), button = make('button', column.number ? 'number' : '', column.name);
    th.scope = 'col';
    th.style.width = `${column.width}%`;
    th.className = `of-${column.key}`;
    th.dataset.key = column.key;
    button.type = 'button';
    if (column.title) button.title = column.title;
    button.addEventListener('click', () => {
      const descending = ['strength', 'tanimoto'].includes(column.key);
      order = { key: column.key, descending: order.key === column.key ? !order.descending : descending };
      arrange();
    });
    th.append(button);
    return th;
  }));
}

const below = text => make('small', 'below', text || '');      // the second line of a cell

function line(result) {
  const tr = make('tr');
  const cell = (className, ...content) => {
    const td = make('td', className);
    td.append(...content);
    tr.append(td);
    return td;
  };
  tr.dataset.number = result.number;
  tr.tabIndex = -1;
  tr.setAttribute('aria-selected', 'false');
  cell('number rank', '');
  const molecule = cell('molecule', make('span', '', label(result)), below(drawnAt(result)));
  const said = [result.name, result.smiles].filter(Boolean).join(': ');
  molecule.title = [said, drawnAt(result), result.notes].filter(Boolean).join('\n');
  const star = Object.assign(make('small', '', ' *'), { ariaLabel: `, ${result.notes}` });
  if (result.notes) molecule.firstChild.append(star);
  const strength = make('div', 'strength');
  strength.append(make('span', '', result.strength.toFixed(1)), make('i'));
  cell('', strength);
  cell('of-corrected', '…');
  const dot = make('span', 'dot'), cosine = result.cosine.toFixed(2), nothing = result.mechanism === noEffect;
  dot.style.background = colours[result.mechanism] || '#888';
  const resembles = cell('of-mechanism', ...nothing ? ['nothing', below('drawn as untreated')]
    : [dot, result.mechanism, below(`cosine ${cosine}, ${percent(result.agreement)} of cells`)]);
  if (!nothing) resembles.title = `${result.mechanism}, cosine ${cosine}; ${percent(result.agreement)} of its cells`;
  if (!absent.likely) likelyCell(cell('of-likely'), result);
  const [wells, where] = wellsOf(result);
  const [says, ...rest] = wells ? saidByWells[wells] : [result.verdict];
  if (where) rest.push(`of ${where}`);
  if (!wells && result.confidence) rest.push(`${result.confidence} right`);
  cell('of-verdict', says, below(rest.join(' '))).title
    = wells ? measured(result) : verdicts[result.verdict];
  if (absent.tanimoto) return tr;
  const near = result.nearest ? [result.nearest, below(`Tanimoto ${result.tanimoto.toFixed(2)}`)] : ['–'];
  cell('of-tanimoto', ...near).title = result.nearest;
  return tr;
}

function measured(result) {
  const [said, where] = wellsOf(result);
  return inWells[said] + (where ? ` in ${where}, not where it is drawn here` : '');
}

function likelyCell(td, result) {
  if (!result.likely) return td.append('–');
  const how = result.verdict === 'known' ? 'known' : percent(result.probability);
  if (result.claim === result.likely) td.append(result.likely, below(how));
  else td.append(result.claim, below(`${how} ${result.likely}`));
  td.title = result.claim === result.likely ? `${result.likely}, ${how}`
    : `No claim; the most probable is ${result.likely}, at ${how}`;
}

// The p-values of all rows so far come with each message: they are corrected for how many there are.
function judge(corrected) {
  results.forEach(result => {
    const p = corrected[result.number - 1] ?? null;
    if (result.corrected === p) return;
    result.corrected = p;
    const td = lines.get(result.number).querySelector('.of-corrected');
    td.replaceChildren(p === null ? '…' : p <= alpha ? 'yes' : 'no');
    if (p !== null) td.append(' ', below(`p ${shortP(p)}`));
    td.classList.toggle('yes', p !== null && p <= alpha);
  });
  const known = results.filter(result => result.corrected !== null && result.corrected !== undefined);
  const yes = known.filter(result => result.corrected <= alpha).length;
  find('.judged').hidden = !known.length;
  find('.beyond').textContent = `${yes} of ${known.length} rows have an effect beyond chance: larger than untreated `
    + `cells of other seeds show, corrected for the number of rows (false discovery rate ${100 * alpha} %).`;
}

function showAlike(alike) {
  find('.heat').hidden = !alike;
  find('.alike').textContent = alike ? alike.sentence : '';
  find('.alike').classList.toggle('warn', Boolean(alike?.warn));
  if (!alike) return;
  find('.heat').src = alike.picture;
  find('.heat').alt = find('.heat').title = 'A square for each pair of molecules: red where their effects point the '
    + 'same way, white where they have nothing in common, blue where they are opposite';
}

function rankAll() {
  const ranked = [...results].sort((a, b) => b.strength - a.strength || a.number - b.number);
  const strongest = Math.max(ranked.length ? ranked[0].strength : 1, 1e-9);
  ranked.forEach((result, i) => {
    const tr = lines.get(result.number);
    if (result.rank !== i + 1) tr.firstChild.textContent = result.rank = i + 1;
    if (result.strongest === strongest) return;
    result.strongest = strongest;
    tr.querySelector('i').style.width = `${100 * result.strength / strongest}%`;
  });
  return ranked;
}

function arrange() {
  const ranked = rankAll(), sign = order.descending ? -1 : 1;
  const value = columns.find(c => c.key === order.key).value || (result => result[order.key]);
  const compare = (a, b) => {
    const x = value(a), y = value(b);
    return sign * (typeof x === 'string' ? x.localeCompare(y) : x - y) || a.rank - b.rank;
  };
  const focused = body.contains(document.activeElement) && document.activeElement;
  let next = body.firstChild;
  for (const result of ranked.sort(compare)) {
    const tr = lines.get(result.number);
    if (tr === next) next = next.nextSibling; else body.insertBefore(tr, next);
  }
  if (focused && focused !== document.activeElement) focused.focus({ preventScroll: true });
  head.querySelectorAll('th').forEach(th => {
    if (th.dataset.key === order.key) th.setAttribute('aria-sort', order.descending ? 'descending' : 'ascending');
    else th.removeAttribute('aria-sort');
  });
  makeTabStop(focused || lines.get(chosen) || body.firstChild);
}

// One row at a time is reached by Tab; arrows go on from there.
function makeTabStop(tr) {
  body.querySelectorAll('tr[tabindex="0"]').forEach(other => { other.tabIndex = -1; });
  if (tr) tr.tabIndex = 0;
}

function keepInView(tr) {
  const box = find('.table'), top = tr.offsetTop - head.offsetHeight, bottom = tr.offsetTop + tr.offsetHeight;
  if (top < box.scrollTop) box.scrollTop = top;
  if (bottom > box.scrollTop + box.clientHeight) box.scrollTop = bottom - box.clientHeight;
}

// The map: plotly comes with the first screen, from this server, and gets new points at most once a second

function addPoint(result) {
  const trace = figure.data.find(t => t.name === result.mechanism);
  if (!trace) return;
  trace.x.push(result.x);
  trace.y.push(result.y);
  trace.marker.symbol.push(symbols[result.verdict]);
  const dose = doseOf(result) && `${doseOf(result)}, `;
  trace.customdata.push([result.number, label(result).slice(0, 60), dose, result.strength]);
}

function setFigure(message) {
  figure = message.figure;
  provenance = message.provenance ?? provenance;
  const bent = figure.layout.xaxis.title.text.startsWith('UMAP');
  find('.umap').hidden = !bent;
  find('.spread').hidden = !spread || bent;
  colours = {};
  for (const trace of figure.data.filter(t => t.customdata)) {
    colours[trace.name] = trace.marker.color;
    Object.assign(trace, { x: [], y: [], customdata: [] });
    trace.marker.symbol = [];
  }
  results.forEach(addPoint);
}

function ring() {
  const result = results.find(r => r.number === chosen);
  const color = getComputedStyle(element).getPropertyValue('--color-accent') || '#6366f1';
  return { x: result ? [result.x] : [], y: result ? [result.y] : [], mode: 'markers', hoverinfo: 'skip',
    showlegend: false, name: 'chosen', marker: { symbol: 'circle-open', size: 19, color, line: { width: 3 } } };
}

async function draw() {
  if (!figure || !visible) return;
  let Plotly;
  try { Plotly = await window.mfmPlotly(plotly); } catch {
    plot.classList.add('failed');
    plot.textContent = 'The map could not be loaded; the table holds everything.';
    return;
  }
  dirty = false;
  const first = !plot.data;
  buttons ??= [window.mfmSaveButton?.(Plotly, 'phenotype-map', () => provenance)].filter(Boolean);
  const bar = [['zoom2d', 'pan2d', 'resetScale2d', ...buttons]];
  const uirevision = run + figure.layout.xaxis.title.text;
  await Plotly.react(plot, [...figure.data, ring()], { ...figure.layout, uirevision },
    { responsive: true, displaylogo: false, modeBarButtons: bar });
  if (!first) return;
  plot.on('plotly_click', event => {
    const number = event.points.map(p => p.customdata?.[0]).find(Boolean);
    if (number) choose(number);
  });
}

function drawSoon(wait) {
  dirty = true;
  clearTimeout(timer);
  timer = setTimeout(async () => {
    const start = performance.now();
    arrange();
    await draw();
    drawn = performance.now();
    interval = Math.max(1000, 4 * (drawn - start));      // a long table leaves the page three quarters of the time
  }, Math.max(0, wait - (performance.now() - drawn)));
}

// One molecule and its cells

function facts(result) {
  const list = make('dl'), add = (term, text) => list.append(make('dt', '', term), make('dd', '', text));
  const heldOut = `; of tested molecules of this kind ${result.confidence} came out right`;
  const p = result.corrected ?? null;
  const chance = p === null ? '' : p <= alpha ? `; beyond chance (corrected p ${shortP(p)})`
    : `; not beyond chance (corrected p ${shortP(p)})`;
  add('Effect', `${result.strength.toFixed(1)}, rank ${result.rank} of ${results.length}${chance}`);
  if (result.mechanism === noEffect) add('Resembles', 'nothing: it is drawn as untreated cells are');
  else add('Resembles', `${result.mechanism} (cosine ${result.cosine.toFixed(2)}); `
    + `${percent(result.agreement)} of its cells agree`);
  if (result.likely && result.verdict !== 'known') {
    const claim = result.claim === result.likely ? '' : 'no claim; most probable ';
    add('By structure', `${claim}${result.likely} (${percent(result.probability)})`);
  }
  if (result.wells) add('Measured', measured(result));
  add('Confidence', verdicts[result.verdict] + (result.confidence ? heldOut : ''));
  if (result.nearest) add('Nearest known', `${result.nearest} (Tanimoto ${result.tanimoto.toFixed(2)})`);
  add('In the list', result.place);
  if (result.notes) add('Read as', result.notes);
  return list;
}

function select(number) {
  const tr = lines.get(number);
  if (lines.has(chosen)) lines.get(chosen).setAttribute('aria-selected', 'false');
  chosen = number;
  tr.setAttribute('aria-selected', 'true');
  makeTabStop(tr);
  keepInView(tr);
  draw();
}

async function choose(number) {
  const result = results.find(r => r.number === number), query = ++queries, queriedRun = run;
  if (!result) return;
  select(number);
  const show = window.mfmShow?.() ?? '';
  let cells;
  try { cells = JSON.parse(await server.get_cells({ run, number, show })); }
  catch { cells = { error: 'The server did not answer; try again.' }; }
  if (query === queries && queriedRun === run) showDetails(result, cells);
}

function showDetails(result, cells) {
  const title = make('h3', '', `${label(result)} `);
  title.append(make('small', '', drawnAt(result)));
  details.replaceChildren(title);
  const structureText = result.name && result.smiles;
  if (structureText) details.append(Object.assign(make('code', '', structureText), { title: structureText }));
  if (cells.error) return details.append(make('p', 'empty', cells.error));
  const picture = (caption, source) => {
    const image = make('img');
    image.src = source;
    image.alt = `${caption}: predicted cells`;
    details.append(make('p', 'caption', caption), image);
  };
  const rows = cells.rows?.length ? `; rows from above: ${cells.rows.join(', ')}` : '';
  picture(`Treated${rows}`, cells.treated);
  picture(`${cells.control_name}, from the same noise`, cells.control);
  const structure = make('div', 'structure');
  structure.innerHTML = cells.structure;
  details.append(...cells.structure ? [structure] : [], facts(result));
  if (plot.data) window.Plotly.Plots.resize(plot);
}

body.addEventListener('click', event => {
  const tr = event.target.closest('tr');
  if (tr) choose(+tr.dataset.number);
});
body.addEventListener('keydown', event => {
  const tr = event.target.closest('tr');
  if (!tr) return;
  if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); return void choose(+tr.dataset.number); }
  const next = {
    ArrowDown: tr.nextSibling, ArrowUp: tr.previousSibling, Home: body.firstChild, End: body.lastChild,
  }[event.key];
  if (!next) return;
  event.preventDefault();
  makeTabStop(next);
  next.focus({ preventScroll: true });
  keepInView(next);
});

// Messages from Python

function startRun(message) {
  run = message.run;
  total = chosen = null;
  results = []; refused = []; lines = new Map();
  body.replaceChildren();
  find('.refused tbody').replaceChildren();
  find('.refused').hidden = find('.judged').hidden = true;
  showAlike(null);
  details.replaceChildren(make('p', 'empty', 'Click a point or a row to see its cells.'));
  find('.hint').hidden = true;
  find('.stage').hidden = false;
  if (!visible) element.scrollIntoView({ behavior: 'smooth' });      // on a narrow page it begins below the fields
}

function addResults(rows) {
  for (const result of rows) {
    results.push(result);
    lines.set(result.number, line(result));
    addPoint(result);
  }
}

function addRefused(rows) {
  for (const row of rows) {
    const tr = make('tr');
    refused.push(row);
    tr.append(make('td', '', row.place), make('td', '', row.text), make('td', '', row.problem));
    find('.refused tbody').append(tr);
  }
  const n = refused.length;
  find('.refused').hidden = !n;
  find('.refused summary').textContent = `${n} ${n === 1 ? 'row was' : 'rows were'} refused; the others went on`;
}

function timeLeft(done) {
  const now = performance.now();
  if (!started || done <= started.done) { started ??= { done, time: now }; return ''; }
  const seconds = (now - started.time) / 1000 / (done - started.done) * (total - done);
  return `, about ${seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`} left`;
}

function showProgress(message) {
  const bar = find('progress'), output = find('output'), done = message.results + message.refused;
  if (message.state !== 'stopped') total = message.total;
  if (message.state === 'running' && total === null) {
    bar.removeAttribute('value');
    output.textContent = 'Reading the list';
    started = null;
    return;
  }
  bar.max = Math.max(1, total || done);
  bar.value = done;
  const some = message.refused ? `, ${message.refused} refused` : '';
  if (message.state === 'running') output.textContent = `${done} of ${total}${some}${timeLeft(done)}`;
  else if (message.state === 'done') output.textContent = `All ${total} done${some}`;
  else output.textContent = `Stopped after ${done}${total ? ` of ${total}` : ''}${some}`;
}

async function receive(message) {
  if (message.run !== run) startRun(message);
  message.places?.forEach(([x, y], i) => { if (results[i]) Object.assign(results[i], { x, y }); });
  if (message.figure) setFigure(message);
  const before = message.results - message.new_results.length;
  const refusedBefore = message.refused - message.new_refused.length;
  if (before > results.length || refusedBefore > refused.length) {
    const missed = JSON.parse(await server.get_missed({ run, results: results.length, refused: refused.length }));
    if (message.run !== run) return;
    addResults(missed.new_results);
    addRefused(missed.new_refused);
  }
  addResults(message.new_results.filter(result => result.number > results.length));
  addRefused(message.new_refused.slice(Math.max(0, refused.length - refusedBefore)));
  if (message.corrected) judge(message.corrected);
  if (message.alike !== undefined) showAlike(message.alike);
  if (message.state !== 'map') showProgress(message);
  drawSoon(message.state === 'running' ? interval : 0);
}

watch('value', () => {
  if (!props.value) return;
  const message = JSON.parse(props.value);
  queue = queue.then(() => receive(message)).catch(error => console.error(error));
});

new IntersectionObserver(entries => {
  visible = entries.at(-1).isIntersecting;
  if (!visible) return;
  setTimeout(() => window.mfmPlotly?.(plotly).catch(() => {}));
  if (dirty || (figure && !plot.data)) draw();
}).observe(element);
find('.spread').hidden = !spread;
element.querySelectorAll('.classes').forEach(node => { node.textContent = classes; });
if (byName) {
  find('.things').textContent = 'names that the model knows';
  find('.legend').innerHTML = '<i><b>●</b> many cells in training</i> <i><b>◆</b> some</i> <i><b>○</b> few</i>';
}
if (byMechanism) {
  find('.legend').innerHTML = '<i><b>●</b> known</i> <i><b>◆</b> a mechanism is likely by structure</i> '
    + '<i><b>○</b> no claim</i>';
}
header();

// Channels are shown as the viewers show them; only the pictures change.
let repaint = null;
window.addEventListener('mfm-channels', () => {
  clearTimeout(repaint);
  if (details.querySelector('img')) repaint = setTimeout(() => choose(chosen), 200);
});
