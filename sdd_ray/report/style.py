"""The style sheet of a report: one column on a phone, two on a desk, ink on paper."""

from sdd_ray.report.drawing import COLOURS


def style_sheet() -> str:
    """Return the CSS of a page, with the colours of the figures for light, dark and paper."""
    light = "".join(f"--{name}:{on_light};" for name, (on_light, _) in COLOURS.items())
    dark = "".join(f"--{name}:{on_dark};" for name, (_, on_dark) in COLOURS.items())
    return (
        f":root{{{light}{_LIGHT}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}{_DARK}}}}}\n{_RULES}"
    )


_LIGHT = "--page:#f6f7f9;--card:#ffffff;--link:#0061a8;color-scheme:light;"
_DARK = "--page:#14171b;--card:#1d2126;--link:#7cc4f5;color-scheme:dark;"
_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}
.sheet{max-width:1080px;margin:0 auto;padding:2.5rem 1.5rem 3rem}
a{color:var(--link)}
h1{font-size:clamp(1.6rem,4.5vw,2.2rem);line-height:1.2;margin:0 0 1.2rem;letter-spacing:-.015em;
 text-wrap:balance}
h2{font-size:1.35rem;line-height:1.3;margin:0 0 .6rem;letter-spacing:-.01em}
p{max-width:70ch;margin:0 0 .8rem}
nav{margin:0 0 2.2rem;padding:.7rem 0;border:solid var(--line);border-width:1px 0}
nav ol{margin:0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:.25rem 1.4rem}
nav a{text-decoration:none}
nav a:hover,nav a:focus{text-decoration:underline}
section{margin:0 0 2.6rem;scroll-margin-top:1rem}
.highlights{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.8rem;
 margin:1rem 0 1.2rem}
.highlight{background:var(--card);border:1px solid var(--line);border-radius:10px;
 padding:.8rem 1rem;display:flex;flex-direction:column-reverse;justify-content:flex-end}
.highlight dd{margin:0;font-size:1.75rem;font-weight:650;line-height:1.2;
 font-variant-numeric:tabular-nums}
.highlight dt{color:var(--muted);font-size:.86rem;line-height:1.35;margin-top:.15rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:1rem;
 align-items:start;margin:1rem 0}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;
 padding:.9rem .9rem .7rem;max-width:640px;min-width:0}
figure.wide{grid-column:1/-1;max-width:none}
figure svg,figure img{display:block;width:100%;height:auto}
figcaption{color:var(--muted);font-size:.86rem;line-height:1.4;margin-top:.5rem}
.faces{display:grid;grid-template-columns:repeat(auto-fill,minmax(70px,1fr));gap:.7rem .6rem;
 margin:0;padding:0;list-style:none}
.faces img{border-radius:6px;aspect-ratio:1;object-fit:cover}
.faces b{display:block;font-size:.92rem;line-height:1.3;margin-top:.25rem;
 font-variant-numeric:tabular-nums}
.faces small{display:block;color:var(--muted);font-size:.74rem;line-height:1.25;
 overflow-wrap:anywhere}
.cases,.cases ul{margin:0;padding:0;list-style:none}
.cases>li{display:grid;grid-template-columns:170px 1fr;gap:.4rem 1.2rem;
 padding:.8rem 0;border-top:1px solid var(--line);break-inside:avoid}
.cases>li:first-child{border-top:0;padding-top:.2rem}
.compact{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));
 column-gap:1.6rem}
.cases.compact>li{grid-template-columns:150px 1fr;border-top:0;padding:.5rem 0}
.cases .words b{display:block;font-size:.9rem;line-height:1.3;overflow-wrap:anywhere}
.cases small{display:block;color:var(--muted);font-size:.78rem;line-height:1.35;
 overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.cases .words small{margin-top:.2rem}
.groups{display:flex;flex-wrap:wrap;gap:.6rem 1.3rem;min-width:0}
.groups>div>small{margin:0 0 .25rem;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.groups>div{min-width:0}
.cases ul{display:flex;flex-wrap:wrap;gap:.3rem}
.cases ul li{width:64px}
.cases ul img,.cases ul span{display:block;width:64px;height:64px;border-radius:6px;
 object-fit:cover;background:var(--line)}
.cases .subject img,.cases .subject span{outline:2.5px solid var(--orange);outline-offset:1px}
.cases ul small{text-align:center;font-size:.72rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--muted);font-size:.86rem;padding:0 0 .4rem}
th,td{text-align:left;padding:.38rem 1.1rem .38rem 0;border-bottom:1px solid var(--line);
 vertical-align:baseline}
thead th{color:var(--muted);font-weight:600;border-bottom:1.5px solid var(--muted)}
tbody th{font-weight:500}
.number{text-align:right;white-space:nowrap}
.facts td{overflow-wrap:anywhere}
@media (max-width:720px){.cases>li,.cases.compact>li{grid-template-columns:1fr}}
@media (max-width:560px){.sheet{padding:1.4rem .9rem 2rem}figure{padding:.7rem .6rem .6rem}
 .highlight dd{font-size:1.35rem}
 .faces{grid-template-columns:repeat(auto-fill,minmax(62px,1fr))}}
@media print{@page{margin:16mm 14mm}body{background:none;font-size:10.5pt}
 .sheet{max-width:none;padding:0}a{color:inherit}section{margin-bottom:1.4rem}
 .figures{grid-template-columns:1fr 1fr}figure,.highlight{border-color:#bbb}
 figure,table,.highlights,.faces li{break-inside:avoid}h2{break-after:avoid}
 .highlight dd{font-size:1.3rem}section>p{break-after:avoid}.scroll{overflow:visible}}
"""
